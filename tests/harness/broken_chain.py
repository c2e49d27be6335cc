"""Breaks a file's chain of clusters on the FAT32 partition of a card off, as a power cut does that comes between the writes of
two sectors of the table: it leads to a cluster that the table says is free.

    broken_chain.py CARD MIB FOLDER NAME    MIB: where the partition starts; the names as FAT has them, in 8.3
"""

import struct
import sys

card, mib, folder, name = sys.argv[1:]
start = int(mib) << 20
with open(card, "r+b") as disk:

    def read(at, size):
        disk.seek(start + at)
        return disk.read(size)

    sector, = struct.unpack_from("<H", read(11, 2))
    per_cluster, reserved, tables = struct.unpack("<BHB", read(13, 4))
    table_size, = struct.unpack("<I", read(36, 4))
    root, = struct.unpack("<I", read(44, 4))
    size = sector * per_cluster
    data = sector * (reserved + tables * table_size)

    def chain(cluster):
        found = []
        while 2 <= cluster < 0x0FFFFFF8:
            found.append(cluster)
            cluster = struct.unpack("<I", read(sector * reserved + 4 * cluster, 4))[0] & 0x0FFFFFFF
        return found

    def first(directory, wanted):
        stem, _, extension = wanted.partition(".")
        short = (stem.ljust(8) + extension.ljust(3)).encode()
        for cluster in chain(directory):
            for at in range(0, size, 32):
                entry = read(data + (cluster - 2) * size + at, 32)
                if entry[:11] == short and entry[11] & 0x0F != 0x0F:
                    high, = struct.unpack_from("<H", entry, 20)
                    low, = struct.unpack_from("<H", entry, 26)
                    return high << 16 | low
        sys.exit(f"{wanted} is not there")

    clusters = chain(first(first(root, folder), name))
    if len(clusters) < 2:
        sys.exit(f"{name} has {len(clusters)} clusters only")
    for cluster in clusters[len(clusters) // 2:]:
        for table in range(tables):
            disk.seek(start + sector * (reserved + table * table_size) + 4 * cluster)
            disk.write(bytes(4))

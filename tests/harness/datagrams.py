"""Datagrams for the tests of host ports; busybox's nc knows TCP only.

  datagrams.py serve NAME PORT               answers each UDP datagram with NAME
  datagrams.py ask ADDRESS PORT FILE         asks ten times a second, always from the same port; FILE has the last answer, or
                                             nothing when there was none
  datagrams.py sctp-init ADDRESS PORT        the first packet of an SCTP association
  datagrams.py sctp-wait PORT FILE           waits for one to PORT; who it came from is then in FILE

The kernel need not have SCTP.
"""

import os
import socket
import struct
import sys
import time


def serve(name, port):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("", int(port)))
    while True:
        server.sendto(name.encode(), server.recvfrom(16)[1])


def say(file, text):
    with open(file + ".new", "w") as new:
        new.write(text)
    os.rename(file + ".new", file)


def ask(address, port, file):
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(0.3)
    client.bind(("", 0))
    while True:
        try:
            client.sendto(b"who", (address, int(port)))
            say(file, client.recv(16).decode())
        except OSError:
            say(file, "")
        time.sleep(0.1)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sctp_init(address, port):
    # RFC 9260: ports, verification tag 0, checksum; chunk INIT with its own tag, window, streams, first number
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 7, 65536, 1, 1, 1)
    ports = struct.pack("!HHI", 40000 + os.getpid() % 10000, int(port), 0)
    checksum = struct.pack("<I", crc32c(ports + bytes(4) + chunk))
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP).sendto(ports + checksum + chunk, (address, 0))


def sctp_wait(port, file):
    packets = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    say(file, "waits")
    while True:
        packet, (source, _) = packets.recvfrom(2048)
        sctp = packet[(packet[0] & 15) * 4 :]
        checksum = struct.unpack("<I", sctp[8:12])[0]
        if struct.unpack("!H", sctp[2:4])[0] == int(port) and checksum == crc32c(sctp[:8] + bytes(4) + sctp[12:]):
            say(file, source)
            return


{"serve": serve, "ask": ask, "sctp-init": sctp_init, "sctp-wait": sctp_wait}[sys.argv[1]](*sys.argv[2:])

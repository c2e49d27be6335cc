"""A time server (RFC 4330) that tells this machine's time: sntp.py ADDRESS [PORT]."""
import socket
import struct
import sys
import time

SINCE_1900 = 2208988800


def stamp(seconds):
    return struct.pack("!II", int(seconds) + SINCE_1900, int(seconds % 1 * 2**32))


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 123))
while True:
    question, client = server.recvfrom(1024)
    now = stamp(time.time())
    if len(question) >= 48:
        # version 4, mode server, stratum 2; the client's own time goes back to it
        head = struct.pack("!BBbb", 0o44, 2, 6, -20) + bytes(8) + bytes([10, 77, 0, 1])
        server.sendto(head + now + question[40:48] + now + stamp(time.time()), client)

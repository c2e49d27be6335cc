#!/usr/bin/env python3
"""Clients of the kubelet API that break the rules.

hostile.py HOST PORT CERTIFICATE KEY PATH CASE: PATH is an exec's path with its query. Prints `refused` when the server
ended the session, `open` when it did not, or the HTTP status when there was no upgrade.
"""
import socket
import ssl
import struct
import sys
import zlib

host, port, certificate, key, path, case = sys.argv[1:7]


def connect():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(certificate, key)
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=10))


def upgrade(connection, version="v4.channel.k8s.io"):
    request = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    connection.sendall(f"{request}X-Stream-Protocol-Version: {version}\r\nContent-Length: 0\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = connection.recv(4096)
        if not data:
            break
        answer += data
    return int(answer.split()[1])


def syn_stream(stream, block):
    body = struct.pack(">IIBB", stream, 0, 0, 0) + block
    return struct.pack(">HHI", 0x8003, 1, len(body)) + body


# a block with no dictionary: no header at all
EMPTY = zlib.compress(struct.pack(">I", 0))

ATTACKS = {
    "oversize": struct.pack(">HHI", 0x8003, 1, 0xFFFFFF) + b"x" * 100000,
    "zlib": syn_stream(1, b"\xff" * 40),
    "reused": syn_stream(1, EMPTY) + syn_stream(1, EMPTY),
    "even": syn_stream(2, EMPTY),
    "unopened": struct.pack(">II", 9, 4) + b"data",
    "version": struct.pack(">HHI", 0x8007, 1, 10) + b"0123456789",
}

if case == "half-open":
    # connections that never begin: the others must be served
    idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(1000)]
    connection = connect()
    print(upgrade(connection))
elif case == "protocol":
    print(upgrade(connect(), "v9.channel.k8s.io"))
elif case == "status":
    print(upgrade(connect()))
else:
    connection = connect()
    status = upgrade(connection)
    if status != 101:
        print(status)
        sys.exit()
    connection.settimeout(5)
    try:
        connection.sendall(ATTACKS[case])
        while connection.recv(4096):
            pass
        print("refused")
    except TimeoutError:
        print("open")
    except OSError:
        print("refused")

#!/usr/bin/env python3
"""Clients nobody knows at the kubelet API.

strangers.py HOST PORT CASE...:
  crowd KIND COUNT FILE   opens COUNT connections, makes FILE, goes on opening others until FILE is gone (a minute at most); prints
                          how many of all were open at the end. KIND: tcp (no handshake), tls (no request), slow (headers that
                          do not end), h2 (HTTP/2 with no request), reset (ended by RST at once)
  closed KIND             prints `closed` when the server ends one connection within half a minute, else `open`. Other KINDs:
                          body (a request whose body does not come), answered (after a request, with CERTIFICATE KEY)
  tokens COUNT            as many wrong tokens; prints the statuses there were, in order
  unpaired CERTIFICATE KEY PATH FILE
                          six port-forwards by SPDY, each with 100 streams that lack their other half and 8 tiny pieces on
                          each; makes FILE, and holds them until FILE is gone
"""
import os
import resource
import select
import socket
import ssl
import struct
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

host, port, case, *rest = sys.argv[1:]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tls(sock, alpn=("http/1.1",), pair=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(alpn))
    if pair:
        context.load_cert_chain(*pair)
    return context.wrap_socket(sock)


def tcp():
    return socket.create_connection((host, int(port)), timeout=20)


def connect(kind):
    sock = tcp()
    if kind == "tcp":
        return sock
    if kind == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.send(b"\x16\x03\x01")
        sock.close()
        return None
    sock = tls(sock, ("h2",) if kind == "h2" else ("http/1.1",))
    if kind == "slow":
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    if kind == "h2":
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">BHBBI", 0, 0, 4, 0, 0))
    if kind == "body":
        sock.sendall(b"POST /run/a/b/c?cmd=true HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    return sock


def tried(kind):
    try:
        return connect(kind)
    except OSError:
        return None


def is_open(sock):
    sock.setblocking(False)
    try:
        while True:
            if not sock.recv(4096):
                return False
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False


def held(path):
    open(path, "w").close()
    end = time.monotonic() + 60
    while os.path.exists(path) and time.monotonic() < end:
        yield


def crowd(kind, count, path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(tried, [kind] * int(count)))
    for _ in held(path):
        found.append(tried(kind))
        time.sleep(0.01)
    print(sum(is_open(s) for s in found if s))


def closed(kind, *pair):
    if kind == "answered":
        sock = tls(tcp(), pair=pair)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    else:
        sock = connect(kind)
    end = time.monotonic() + 30
    sock.settimeout(1)
    while time.monotonic() < end:
        try:
            if kind == "slow":
                sock.send(b"x")
            if not sock.recv(4096):
                return print("closed")
        except TimeoutError:
            pass
        except OSError:
            return print("closed")
    print("open")


def tokens(count):
    seen, sock = [], None
    for n in range(int(count)):
        sock = sock or tls(tcp())
        sock.sendall(f"GET /pods HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong-{n}\r\n\r\n".encode())
        answer = sock.recv(4096)
        if not answer:
            sock = None
            continue
        status = int(answer.split()[1])
        if status not in seen:
            seen.append(status)
        if b"\r\n\r\n" not in answer or not answer.split(b"\r\n\r\n", 1)[1]:
            # the body comes on its own
            select.select([sock], [], [], 0.2)
            sock.recv(4096)
    print(*seen)


def unpaired(certificate, key, path, file):
    connections = []
    for _ in range(6):
        sock = tls(tcp(), pair=(certificate, key))
        request = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        sock.sendall(f"{request}X-Stream-Protocol-Version: portforward.k8s.io\r\nContent-Length: 0\r\n\r\n".encode())
        if b" 101 " not in sock.recv(4096):
            sys.exit("no upgrade")
        deflate = zlib.compressobj()
        sent = b""
        for n in range(100):
            pairs = [(b"streamtype", b"data"), (b"port", b"80"), (b"requestid", str(n).encode())]
            plain = struct.pack(">I", len(pairs))
            for text in (t for pair in pairs for t in pair):
                plain += struct.pack(">I", len(text)) + text
            block = deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH)
            sent += struct.pack(">HHIIIBB", 0x8003, 1, 10 + len(block), 2 * n + 1, 0, 0, 0) + block
            for _ in range(8):
                # each in a packet of its own
                sock.sendall(sent + struct.pack(">II", 2 * n + 1, 200) + b"x" * 200)
                sent = b""
        connections.append(sock)
    for _ in held(file):
        time.sleep(0.1)


globals()[case](*rest)

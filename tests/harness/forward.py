#!/usr/bin/env python3
"""Offers a TCP address of a network namespace on a free loopback port of this one.

forward.py NETNS-FILE HOST PORT PORT-FILE: listens here, then enters the namespace, so that connections out of this
process begin there. The chosen port is written to PORT-FILE.
"""
import asyncio
import ctypes
import os
import socket
import sys

CLONE_NEWNET = 0x40000000


async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def main(netns, host, port, port_file):
    listener = socket.create_server(("127.0.0.1", 0))
    libc = ctypes.CDLL(None, use_errno=True)
    with open(netns) as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            sys.exit(f"forward: entering {netns}: {os.strerror(ctypes.get_errno())}")

    async def serve(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, sock=listener)
    with open(port_file + ".new", "w") as out:
        out.write(str(listener.getsockname()[1]))
    os.rename(port_file + ".new", port_file)
    await server.serve_forever()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))

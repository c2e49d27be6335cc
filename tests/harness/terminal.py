#!/usr/bin/env python3
"""Runs a command on a pseudo-terminal of 80x24, types into it, makes the terminal 132x50 and types again.

terminal.py COMMAND...: prints what the terminal showed.
"""
import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time

pid, master = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])


def size(rows, columns):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def show(seconds):
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not select.select([master], [], [], left)[0]:
            return True
        try:
            data = os.read(master, 65536)
        except OSError:
            return False
        sys.stdout.write(data.decode(errors="replace"))
    return True


size(24, 80)
show(2)
os.write(master, b"stty size\n")
show(1)
size(50, 132)
show(0.5)
os.write(master, b"stty size; tty; exit 3\n")
while show(3):
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

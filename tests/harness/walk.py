#!/usr/bin/env python3
"""What another user may do with files of a node.

walk.py UID TREE...: as root finds all names below the trees, then becomes UID and tries each: prints the folders it can list,
the files it can read, and those it could execute.
"""
import os
import stat
import sys

uid, trees = int(sys.argv[1]), sys.argv[2:]
names = []
for tree in trees:
    names.append(tree)
    for folder, folders, files in os.walk(tree):
        names += [os.path.join(folder, name) for name in folders + files]
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
for name in names:
    try:
        kind = os.lstat(name).st_mode
    except OSError:
        # not even there for this user
        continue
    try:
        if stat.S_ISDIR(kind):
            os.listdir(name)
            print("listed", name)
        elif stat.S_ISREG(kind):
            if os.access(name, os.X_OK):
                print("can execute", name)
            with open(name, "rb") as file:
                file.read(1)
            print("read", name)
    except OSError:
        pass
print(f"{len(names)} names tried")

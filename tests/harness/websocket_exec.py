#!/usr/bin/env python3
"""exec by the Python client's websockets: websocket_exec.py KUBECONFIG POD. Prints output, errors and the exit code."""
import sys

from kubernetes import client, config
from kubernetes.stream import stream

config.load_kube_config(sys.argv[1])
session = stream(
    client.CoreV1Api().connect_get_namespaced_pod_exec, sys.argv[2], "default",
    command=["sh", "-c", "read line; echo got $line; echo wrong >&2; exit 5"],
    stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False)
session.write_stdin("hello\n")
out = err = ""
while session.is_open():
    session.update(timeout=5)
    out += session.read_stdout() if session.peek_stdout() else ""
    err += session.read_stderr() if session.peek_stderr() else ""
print(out.strip(), err.strip(), session.returncode)

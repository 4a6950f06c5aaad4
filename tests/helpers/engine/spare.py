"""A spare process with its driver's modules loaded, which becomes the engine's fork server where one would be started.

A fork server of toys imports torch, for more than a second of CPU time in each of a hundred sweeps, and a driver that
was forked has done so. What runs in the spare is what a fresh Python would: the command line that multiprocessing made.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from multiprocessing import util

from flopsfit_ds.engine.fork import preload

_FIRST_FREE = 100
"""Descriptors from here on are nobody's while those that were sent are put in their places."""


def keep_one() -> None:
    """Fork a spare, while this process has no other thread; the first fork server it starts is that, later ones new."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # a request comes whole
    pid = os.fork()
    if pid == 0:
        ours.close()
        os._exit(_become_server(theirs))
    theirs.close()
    start_new, spares = util.spawnv_passfds, [(pid, ours)]

    def start(path: bytes, arguments: list[str], descriptors: list[int]) -> int:
        if not spares or "forkserver" not in arguments[-1]:
            return start_new(path, arguments, descriptors)
        pid, connection = spares.pop()
        request = {"code": arguments[-1], "descriptors": list(descriptors), "environment": dict(os.environ)}
        with connection:
            socket.send_fds(connection, [json.dumps(request).encode()], list(descriptors))
        return pid

    util.spawnv_passfds = start


def _become_server(connection: socket.socket) -> int:
    text, received, _, _ = socket.recv_fds(connection, 1 << 20, 8)
    if not text:  # the driver has ended, or was to start none
        return 0
    request = json.loads(text)
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _FIRST_FREE) for descriptor in received]
    os.closerange(3, _FIRST_FREE)
    for descriptor, number in zip(high, request["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    preload.server_pid = os.getpid()
    try:
        exec(request["code"], {})
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0

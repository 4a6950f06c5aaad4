"""Ports for programs that are told beforehand where to listen."""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path

_numbers = itertools.count(os.getpid() * 101)


def free_port() -> int:
    """A port that nobody listens at now, and that the kernel gives to nobody who asks for any."""
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    lowest = first_given // 2
    for number in _numbers:
        port = lowest + number % (first_given - lowest)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("counting never ends")

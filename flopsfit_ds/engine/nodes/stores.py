"""Rendezvous stores: hosted where only those reach them that must."""

from __future__ import annotations

import ipaddress
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from flopsfit_ds.base.errors import LaunchError

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether a host, as a launcher names it, is this machine's loopback; a name is not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_store(patience: timedelta, *, only_here: bool, port: int = 0) -> TCPStore:
    """A store that this process hosts; PyTorch's own would listen on every interface.

    Args:
        patience: Of whoever waits for a key.
        only_here: Listen on the loopback: all that use it are on this machine.
        port: Where to listen; 0 for any free one.

    Raises:
        LaunchError: The port is taken, or there is no loopback interface.
    """
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    if not only_here:
        return TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, timeout=patience)
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        _see_that_it_can_be_reached(listener)
    except OSError as error:
        listener.close()
        raise LaunchError(
            f"{LOOPBACK}:{port}: {error.strerror or error}; workers meet there: is the port free, and is the loopback "
            "interface up (`ip link set lo up`)?"
        ) from None
    bound = listener.getsockname()[1]
    return TCPStore(
        LOOPBACK, bound, is_master=True, wait_for_workers=False, timeout=patience, master_listen_fd=listener.detach()
    )


def _see_that_it_can_be_reached(listener: socket.socket) -> None:
    """An address of an interface that is down can be bound, and then everyone who connects waits for minutes."""
    listener.listen()
    with socket.create_connection(listener.getsockname(), timeout=5):
        listener.accept()[0].close()

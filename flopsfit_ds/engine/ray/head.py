"""Whether a Ray cluster's head is there: Ray ends the whole process, without a word of ours, once it gives it up."""

from __future__ import annotations

import importlib
import os
import socket
import time
from typing import Any

from flopsfit_ds.base.errors import LaunchError

_KNOCK_SECONDS = 20.0
"""For an answer at an address, between machines that are far apart too."""
_LOOK_SECONDS = 1.0
_RAYS_PATIENCE = ("RAY_gcs_rpc_server_reconnect_timeout_s", 60.0)
"""How long Ray waits for its head to be started again, and what ends it (ray 2.60)."""
_SHARE = 0.5
"""Of that, after which the head counts as lost: the sweep must end in order before Ray ends the process."""


class HeadLostError(LaunchError):
    """The head does not answer; nor would whatever else Ray were asked."""


class Head:
    """The head of the cluster that this process is connected to.

    Attributes:
        is_lost: Whether it was found to be.
    """

    def __init__(self) -> None:
        """Find it; one that cannot be reached from here at all, as behind a proxy, is not watched."""
        ray: Any = importlib.import_module("ray")
        self._address = str(ray.get_runtime_context().gcs_address)
        self._patience = _SHARE * float(os.environ.get(*map(str, _RAYS_PATIENCE)))
        self._is_watched = self._answers()
        self.is_lost = False
        self._silent_since: float | None = None
        self._next_look = 0.0

    def _answers(self) -> bool:
        try:
            knock(self._address)
        except OSError:
            return False
        return True

    def check(self) -> None:
        """Knock, at most once a second.

        Raises:
            HeadLostError: It has not answered for half of the time after which Ray ends this process.
        """
        now = time.monotonic()
        if not self._is_watched or now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if self._answers():
            self._silent_since = None
            return
        self._silent_since = now if self._silent_since is None else self._silent_since
        if now - self._silent_since >= self._patience:
            self.is_lost = True
            raise HeadLostError(
                f"Ray's head is lost: {self._address} has not answered for {now - self._silent_since:.0f} s; started "
                "again, the sweep goes on from its checkpoints"
            )


def knock(address: str) -> None:
    """See that somebody listens at an address of a host and a port; Ray itself tries for many minutes.

    Raises:
        OSError: Nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()

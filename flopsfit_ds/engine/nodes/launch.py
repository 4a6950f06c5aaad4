"""Ranks that a launcher started: one of a node works, the others lend it their slot and wait for the end."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.base.hardware import launched_world
from flopsfit_ds.engine.fork.processes import state_of
from flopsfit_ds.engine.signals import Signals

_log = logging.getLogger(__name__)
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_AGENT_PATIENCE_SECONDS = 300.0
"""For the working rank to be there: it imports what the waiting ranks import, on the same machine. Chosen."""
_EXIT_AGENT_LOST = 1  # an error, to whatever launched this rank
_CODE = struct.Struct("i")
_CREDENTIALS = struct.Struct("iII")
"""Pid, user and group, as SO_PEERCRED gives them; see unix(7)."""


@dataclass(frozen=True)
class LaunchedRank:
    """This process's place in what a launcher started.

    Attributes:
        rank: Over all nodes.
        world_size: Ranks over all nodes.
        local_rank: On this node; 0 works, the others wait.
        local_world_size: Ranks of this node.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def node(self) -> int:
        """Number of this node; 0 has the driver."""
        return self.rank // self.local_world_size

    @property
    def num_nodes(self) -> int:
        """Nodes."""
        return self.world_size // self.local_world_size


def launched_rank(environment: Mapping[str, str]) -> LaunchedRank | None:
    """What a launcher, or SLURM's `srun`, says of this process; None without one.

    Raises:
        LaunchError: The launcher's variables are incomplete or contradict each other.
    """
    world = launched_world(environment)
    if world is None:
        return None
    rank = environment.get("RANK", environment.get("SLURM_PROCID"))
    local_rank = environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID"))
    if rank is None or local_rank is None:
        raise LaunchError(
            "the launcher sets a world size but no RANK and LOCAL_RANK; launch with deepspeed, torchrun or srun"
        )
    return LaunchedRank(int(rank), world[0], int(local_rank), world[1])


def _socket_name(place: LaunchedRank) -> str:
    """Name of the node's abstract socket: of the launcher's process, which no other launch shares.

    The launcher is the nearest ancestor that does not have this process's own RANK in its environment: between the two
    there may be shells.
    """
    mark = f"RANK={os.environ['RANK']}" if "RANK" in os.environ else f"SLURM_PROCID={os.environ['SLURM_PROCID']}"
    pid = os.getppid()
    while pid > 1:
        try:
            entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # another user's: SLURM's own daemon
            break
        if mark.encode() not in entries:
            break
        state = state_of(pid)
        pid = state.parent if state else 1
    state = state_of(pid)
    return f"\0flopsfit-ds.{os.getuid()}.{pid}.{state.start_time if state else 0}.{place.node}"


def _is_own_user(peer: socket.socket) -> bool:
    """Whether the process at the other end is this user's, as the kernel says."""
    _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return user == os.geteuid()


class Waiters:
    """The working rank's side: hears signals that the waiting ranks got, and tells them how the sweep ended.

    When the launcher itself dies, the sweep stops as if it had been asked to: nobody would collect its ranks.
    """

    def __init__(self, place: LaunchedRank, signals: Signals) -> None:
        """Open the node's socket.

        Raises:
            LaunchError: Another sweep of this launcher is under way on this node.
        """
        self._signals = signals
        self._peers: list[socket.socket] = []
        self._launcher = os.getppid()
        self._exit_code: int | None = None
        self._wake_read, self._wake_write = os.pipe()
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(_socket_name(place))
        except OSError as error:
            raise LaunchError(f"another sweep is under way in this launch, on this node ({error.strerror})") from None
        self._listener.listen(place.local_world_size)
        self._thread = threading.Thread(target=self._serve, name="flopsfit-ds waiters", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while self._exit_code is None:
            ready, _, _ = select.select([self._listener, self._wake_read, *self._peers], [], [], 1.0)
            if os.getppid() != self._launcher and not self._signals.stops:
                self._signals.note(signal.SIGTERM)
            for item in ready:
                if item is self._listener:
                    self._let_in(self._listener.accept()[0])
                elif isinstance(item, socket.socket):
                    self._hear(item)

    def _let_in(self, peer: socket.socket) -> None:
        """Listen to a waiting rank. Every user of the machine can reach an abstract socket; others are sent away."""
        if _is_own_user(peer):
            self._peers.append(peer)
            return
        _log.warning("a process of another user knocked at the socket of the waiting ranks, and was sent away")
        peer.close()

    def _hear(self, peer: socket.socket) -> None:
        try:
            data = peer.recv(1)
        except OSError:
            data = b""
        if not data:
            self._peers.remove(peer)
        elif data[0] in _PASSED_ON:
            self._signals.note(data[0])

    def finish(self, exit_code: int) -> None:
        """Tell the waiting ranks the sweep's exit code; they leave when this process does, not before."""
        self._exit_code = exit_code
        os.write(self._wake_write, b"!")
        self._thread.join()
        for peer in self._peers:
            with suppress(OSError):
                peer.sendall(_CODE.pack(exit_code))
        _open_until_exit.extend(self._peers)
        self._listener.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


_open_until_exit: list[socket.socket] = []


def wait_for_agent(place: LaunchedRank) -> int:
    """Wait, in a rank that only lends its slot, until the working rank of this node exits; pass on signals.

    Returns:
        The sweep's exit code.
    """
    parent = os.getppid()
    heard: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if agent is not None:
            with suppress(OSError):
                agent.send(bytes([number]))

    agent: socket.socket | None = None
    for number in _PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    agent = _connect(_socket_name(place), parent)
    if agent is None:
        return _EXIT_AGENT_LOST
    for number in heard:
        pass_on(number, None)
    code, data = _EXIT_AGENT_LOST, b""
    while True:
        ready, _, _ = select.select([agent], [], [], 1.0)
        if ready:
            part = agent.recv(_CODE.size)
            if not part:
                return code
            data += part
            if len(data) == _CODE.size:
                code = _CODE.unpack(data)[0]
        elif os.getppid() != parent:
            return _EXIT_AGENT_LOST


def _connect(name: str, parent: int) -> socket.socket | None:
    deadline = time.monotonic() + _AGENT_PATIENCE_SECONDS
    while time.monotonic() < deadline and os.getppid() == parent:
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.connect(name)
            if _is_own_user(peer):
                return peer
        except OSError:
            pass
        peer.close()
        time.sleep(0.1)
    return None

"""Processes known by pid and start time: a pid alone is reused, and a killed driver leaves others behind.

The start time is the kernel's own, in clock ticks since the boot, as it stands in /proc. psutil adds to it the time of
the boot (`create_time`, 7.2), which moves when the clock is set: a worker that a file names would then count as gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_LONGEST_STAT = 4096  # a line has 52 numbers and a name of at most 64 bytes
_STATE, _PARENT, _START_TIME = 0, 1, 19  # fields of /proc/<pid>/stat that follow the command's name; see proc(5)


class ProcessState(NamedTuple):
    """What the kernel says of a process.

    Attributes:
        letter: `R` runs, `S` sleeps, `Z` has ended; see proc(5).
        parent: Pid.
        start_time: Clock ticks since the boot.
    """

    letter: str
    parent: int
    start_time: int

    @property
    def has_ended(self) -> bool:
        """Whether only its exit code is left."""
        return self.letter in "ZX"


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, for as long as the machine is up.

    Attributes:
        pid: Number, within its namespace.
        start_time: Clock ticks since the boot at which it began.
        host: `host_identity()` of where it runs.
    """

    pid: int
    start_time: int
    host: str

    def to_json_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, where this process can see it."""
        return self.host == host_identity()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; only meaningful where `is_here`."""
        state = state_of(self.pid)
        return state is not None and state.start_time == self.start_time and not state.has_ended

    @property
    def is_stopped(self) -> bool:
        """Whether a signal such as SIGSTOP holds it."""
        state = state_of(self.pid)
        return state is not None and state.start_time == self.start_time and state.letter in "Tt"


def state_of(pid: int) -> ProcessState | None:
    """What /proc/<pid>/stat says; None where there is no such process."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)  # no pathlib: read of every process at each end
    except FileNotFoundError:
        return None
    try:
        line = os.read(descriptor, _LONGEST_STAT)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    fields = line.decode(errors="replace").rpartition(")")[2].split()
    return ProcessState(fields[_STATE], int(fields[_PARENT]), int(fields[_START_TIME]))


def identify(pid: int | None = None) -> ProcessIdentity:
    """Identity of a process of this machine, this one by default.

    Raises:
        ProcessLookupError: There is no such process.
    """
    pid = os.getpid() if pid is None else pid
    state = state_of(pid)
    if state is None:
        raise ProcessLookupError(f"no process {pid}")
    return ProcessIdentity(pid, state.start_time, host_identity())


def host_identity() -> str:
    """This boot of this machine and this namespace of pids, for pids mean nothing elsewhere."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot[:13]}/{Path('/proc/self/ns/pid').readlink()}"


def die_with_parent(with_signal: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent ends.

    Raises:
        OSError: The kernel refused.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, with_signal, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def session_members(session: int) -> list[int]:
    """Pids of all processes of a session that still run."""
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    members = []
    for pid in pids:
        with suppress(ProcessLookupError):
            if os.getsid(pid) == session and (state := state_of(pid)) is not None and not state.has_ended:
                members.append(pid)
    return members


def kill_session(leader: ProcessIdentity) -> None:
    """SIGKILL a worker with all that it started; nothing happens where its pid is another process now."""
    with suppress(ProcessLookupError):  # it may end at any moment, and what it started live on
        if leader.is_alive and os.getsid(leader.pid) != leader.pid:  # forked, but not yet a session of its own
            os.kill(leader.pid, signal.SIGKILL)
            return
    state = state_of(leader.pid)
    if state is not None and state.start_time != leader.start_time:
        return
    for pid in session_members(leader.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def end_leftovers(leftovers: list[ProcessIdentity], patience_seconds: float = 10.0) -> list[ProcessIdentity]:
    """Kill those of a dead driver's workers that still run here, and wait until they are gone.

    Returns:
        Those that had to be killed.
    """
    found = [worker for worker in leftovers if worker.is_here and worker.is_alive]
    for worker in found:
        kill_session(worker)
    deadline = time.monotonic() + patience_seconds
    while any(worker.is_alive for worker in found) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found

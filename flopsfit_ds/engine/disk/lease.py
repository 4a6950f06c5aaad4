"""One driver a sweep folder: a lease with a fencing number and a heartbeat, without locks of the file system.

A lease is a file with a number, made by linking, which even network file systems do for one of several at once. The
highest number holds. Its holder rewrites a counter; others judge by whether it moves on their own clock, so that
a clock set back or two clocks that differ mean nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from flopsfit_ds.base.errors import RecordError, SweepFolderError
from flopsfit_ds.base.storage import read_json, write_json
from flopsfit_ds.engine.fork.processes import ProcessIdentity, identify
from flopsfit_ds.records import SweepFolder

_log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 2.0
"""Between two counts: fifteen must be missed before a lease is stale."""
STALE_SECONDS = 30.0
"""A holder on another machine that does not move its counter for so long has lost its lease."""


class Right(Protocol):
    """The right to write records, for as long as nobody else has taken it."""

    def check(self) -> None:
        """See that it still holds.

        Raises:
            SweepFolderError: It does not.
        """
        ...


class Lease:
    """The right to drive a sweep, from `acquire` to `release`.

    Attributes:
        number: Fencing number: higher than that of all holders before.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self._folder = folder
        self._path = folder / str(number)
        self._process = identify().to_json_dict()
        self._beats = 0
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="flopsfit-ds lease", daemon=True)

    @classmethod
    def acquire(cls, folder: Path, stale_seconds: float | None = None) -> Lease:
        """Take the lease of a sweep folder, from a holder that is gone if need be.

        Args:
            folder: Where the leases lie; made if missing.
            stale_seconds: How long a counter must stand still; without it, FLOPSFIT_DS_STALE_SECONDS, or 30.

        Raises:
            SweepFolderError: Another driver holds it, or the folder cannot be written.
        """
        if stale_seconds is None:
            stale_seconds = float(os.environ.get("FLOPSFIT_DS_STALE_SECONDS", STALE_SECONDS))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                newest = max(_numbers(folder), default=0)
                if newest:
                    _wait_until_gone(folder / str(newest), stale_seconds)
                lease = cls(folder, newest + 1)
                if lease._claim():
                    break
        except OSError as error:
            raise SweepFolderError(
                f"{folder}: no lease can be written: {error.strerror}; files must be allowed in it"
            ) from None
        for number in _numbers(folder):
            if number < lease.number - 1:
                (folder / str(number)).unlink(missing_ok=True)
        lease._thread.start()
        return lease

    def _content(self) -> dict[str, Any]:
        return {
            "process": self._process,
            "host": socket.gethostname(),
            "command": " ".join(sys.argv)[:300],
            "beats": self._beats,
            "released": False,
        }

    def _claim(self) -> bool:
        """Make the lease's file; False where another was quicker."""
        draft = self._folder / f".{self.number}.{socket.gethostname()}.{os.getpid()}"
        write_json(draft, self._content())
        try:
            os.link(draft, self._path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return self._claim_exclusively()
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _claim_exclusively(self) -> bool:
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        write_json(self._path, self._content())
        return True

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            newest = max(_numbers(self._folder), default=0)
            if newest > self.number:
                self._lost = f"{self._folder.parent}: {_describe(self._folder / str(newest))} has taken this sweep over"
                return
            self._beats += 1
            try:
                write_json(self._path, self._content(), durable=False)
            except SweepFolderError:
                continue  # a full disk: others see a counter that stands still, and may take over

    def check(self) -> None:
        """See that the lease still holds; to be called before anything is written on its strength.

        Raises:
            SweepFolderError: Another driver has taken over.
        """
        if self._lost is None and max(_numbers(self._folder), default=self.number) > self.number:
            newest = max(_numbers(self._folder))
            self._lost = f"{self._folder.parent}: {_describe(self._folder / str(newest))} has taken this sweep over"
        if self._lost is not None:
            raise SweepFolderError(f"{self._lost}; this driver stops")

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        self._thread.join()
        if self._path.exists():
            try:
                write_json(self._path, {**self._content(), "released": True})
            except SweepFolderError as error:
                _log.warning("%s; the lease ends with this process", error)


def _numbers(folder: Path) -> list[int]:
    try:
        with os.scandir(folder) as entries:  # no pathlib: looked at whenever the driver does anything
            return [int(entry.name) for entry in entries if entry.name.isdigit()]
    except FileNotFoundError:
        return []


def _read(path: Path) -> dict[str, Any] | None:
    """A lease; None where it is torn or gone: then nobody proves to hold it, but nobody can be named either."""
    try:
        return read_json(path)
    except (RecordError, FileNotFoundError):
        return None


def newest_lease(folder: Path) -> dict[str, Any] | None:
    """What the newest lease of a folder says; None where there is none, or it is torn."""
    newest = max(_numbers(folder), default=0)
    return _read(folder / str(newest)) if newest else None


def _describe(path: Path) -> str:
    lease = _read(path)
    if lease is None:
        return "another driver"
    return f"the driver with pid {lease['process']['pid']} on {lease['host']} ({lease['command']})"


def _wait_until_gone(path: Path, stale_seconds: float) -> None:
    """Return once a lease is known to be given up.

    Raises:
        SweepFolderError: Its holder is alive.
    """
    first = _read(path)
    if first is not None:
        if first["released"]:
            return
        holder = ProcessIdentity(**first["process"])
        if holder.is_here and not holder.is_alive:
            return
        if holder.is_here and not holder.is_stopped:
            _refuse(path)
    deadline = time.monotonic() + stale_seconds
    while time.monotonic() < deadline:
        time.sleep(0.25)
        now = _read(path)
        if now is not None and now["released"]:
            return
        if now is not None and (first is None or now["beats"] != first["beats"]):
            _refuse(path)


def _refuse(path: Path) -> None:
    raise SweepFolderError(
        f"{path.parent.parent}: {_describe(path)} is at work on this sweep; wait for it, "
        "stop it, or give the spec another name"
    )


class LeaseSet:
    """The right to carry out some runs."""

    def __init__(self, folder: SweepFolder, run_ids: tuple[str, ...]) -> None:
        """Take the lease of each run; all or none, and together, as each may have to be waited for.

        Raises:
            SweepFolderError: Another job holds one.
        """
        paths = [folder.run(run_id).path / "leases" for run_id in run_ids]
        with ThreadPoolExecutor(max_workers=max(1, len(paths))) as pool:
            pending = [pool.submit(Lease.acquire, path) for path in paths]
        errors = [error for each in pending if (error := each.exception()) is not None]
        self._leases = [each.result() for each in pending if each.exception() is None]
        if errors:
            self.release()
            raise errors[0]

    def check(self) -> None:
        """See `Lease`."""
        for lease in self._leases:
            lease.check()

    def release(self) -> None:
        """See `Lease`."""
        for lease in self._leases:
            lease.release()


class Rights:
    """Several, all of which must hold."""

    def __init__(self, rights: Sequence[Right]) -> None:
        self._rights = tuple(rights)

    def check(self) -> None:
        """See `Right`."""
        for right in self._rights:
            right.check()

"""Workers that end themselves by SIGKILL at one of their own steps on the file system, or wait to be signalled."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flopsfit_ds.records import RunFolder
from flopsfit_ds.train.worker import run_worker

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


class Deadline:
    """Counts the steps of this process on the file system, from 1, and ends it just before one of them.

    Opening, making, renaming and removing are seen by an audit hook; writing and syncing, which raise no event, by
    wrapping them. A write is two steps: before it, and after half of it.
    """

    def __init__(self, number: int, words: str = "") -> None:
        self.seen, self.number, self.words = 0, number, words
        sys.addaudithook(self._look)

    def watch_writes(self) -> None:
        """Count `os.write` and `os.fsync` too."""
        write, sync = os.write, os.fsync

        def half_and_half(descriptor: int, data: bytes) -> int:
            self._step()
            middle = len(data) // 2
            written = write(descriptor, data[:middle])
            self._step()
            return written + write(descriptor, data[middle:])

        def counted_sync(descriptor: int) -> None:
            self._step()
            sync(descriptor)

        os.write, os.fsync = half_and_half, counted_sync

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and self.words in str(arguments[0]):
            self._step()

    def _step(self) -> None:
        self.seen += 1
        if self.seen == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def survives(number: int, write: Callable[[], None]) -> bool:
    """Do a write in a fork that dies at its step `number`; whether the write came to its end before."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            Deadline(number).watch_writes()
            write()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0


def run_worker_that_dies(order: Any, task: Any) -> int:
    """The real worker, whose rank 0 dies at the step and path that the file `die_at` in the run folder names."""
    number, words = (Path(order.run_folder) / "die_at").read_text().split()
    if order.rank == 0:
        Deadline(int(number), words)
    return run_worker(order, task)


def run_worker_that_waits(order: Any, task: Any) -> int:
    """The real worker, whose rank 0 stays in the step after the one in the file `wait_after`, until that is gone."""
    folder = RunFolder(Path(order.run_folder))
    wait_after, loss = folder.path / "wait_after", task.workload.loss
    step = int(wait_after.read_text())

    def held(model: Any, batch: Any) -> Any:
        while wait_after.exists() and (last := folder.metrics.last()) is not None and last["step"] >= step:
            time.sleep(0.01)
        return loss(model, batch)

    if order.rank == 0:
        object.__setattr__(task.workload, "loss", held)
    return run_worker(order, task)

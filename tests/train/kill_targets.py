"""What processes run that end themselves by SIGKILL at one of their own steps on the file system."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from flopsfit_ds.train.worker import run_worker

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}


def die_at(number: int, words: str) -> None:
    """From now on, end this process before its step `number` (from 1) on a path that contains `words`."""
    seen = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and words in str(arguments[0]):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def run_worker_that_dies(order: Any, task: Any) -> int:
    """The real worker, whose rank 0 dies at the step and path that the file `die_at` in the run folder names."""
    number, words = (Path(order.run_folder) / "die_at").read_text().split()
    if order.rank == 0:
        die_at(int(number), words)
    return run_worker(order, task)

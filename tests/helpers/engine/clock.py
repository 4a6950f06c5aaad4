"""A wall clock that a test sets forth and back under a running sweep; all other clocks stay as they are."""

from __future__ import annotations

import os
import time
from pathlib import Path

_VARIABLE = "TOY_CLOCK"
_true_time = time.time


def follow_clock() -> None:
    """Have `time.time` of this process say what the test wants, where it wants anything."""
    place = os.environ.get(_VARIABLE)
    if place is not None:
        time.time = lambda: _true_time() + float(Path(place).read_text())


def set_clock(folder: Path, seconds_ahead: float) -> dict[str, str]:
    """Set the clock of a folder's sweep so far ahead of the true one; what its environment must hold."""
    place, draft = folder / "clock", folder / "clock.new"
    draft.write_text(str(seconds_ahead))
    draft.rename(place)
    return {_VARIABLE: str(place)}

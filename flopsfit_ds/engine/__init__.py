"""The engine: carries a plan out, keeps every slot busy, and loses no point.

Imports no torch until a sweep starts, and each of its names when it is first used: what looks at a sweep's files needs
neither plans nor executors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flopsfit_ds.engine.disk.folder import read_plan
    from flopsfit_ds.engine.disk.retry import give_another_chance
    from flopsfit_ds.engine.progress import Progress
    from flopsfit_ds.engine.signals import EXIT_REQUEUE, SweepStoppedError
    from flopsfit_ds.engine.sweep import ExecutorName, run_sweep

__all__ = [
    "EXIT_REQUEUE",
    "ExecutorName",
    "Progress",
    "SweepStoppedError",
    "give_another_chance",
    "read_plan",
    "run_sweep",
]

_HOMES = {
    "EXIT_REQUEUE": "signals",
    "ExecutorName": "sweep",
    "Progress": "progress",
    "SweepStoppedError": "signals",
    "give_another_chance": "disk.retry",
    "read_plan": "disk.folder",
    "run_sweep": "sweep",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"flopsfit_ds.engine.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The engine: carries a plan out, keeps every slot busy, and loses no point.

Imports no torch until a sweep starts.
"""

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

"""A sweep on a Ray cluster: the same folder, records and driver; Ray decides what runs where."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.engine.disk.lease import Right
from flopsfit_ds.engine.fork.server import Program
from flopsfit_ds.engine.lifecycle import Crew, Lifecycle
from flopsfit_ds.engine.progress import Progress
from flopsfit_ds.engine.ray.executor import RayExecutor
from flopsfit_ds.engine.ray.head import HeadLostError, knock
from flopsfit_ds.engine.ray.resources import Group, plan_groups
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slurm.job import Bin
from flopsfit_ds.engine.slurm.sweep import Everything
from flopsfit_ds.engine.ways import ways_of
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.train.order import Tasks


@dataclass(frozen=True)
class RaySweep:
    """What it takes to carry a plan out on Ray; a `Ground`.

    Attributes:
        tasks: The task of a run.
        program: What workers run.
        signals: What stops the sweep.
    """

    tasks: Tasks
    program: Program
    signals: Signals

    @contextmanager
    def claim(self, plan: SweepPlan, folder: SweepFolder) -> Iterator[Sequence[Right]]:
        """None: each run's first node takes the run's lease."""
        (folder.path / "ray").mkdir(exist_ok=True)
        yield ()

    def at_work(self, plan: SweepPlan, folder: SweepFolder) -> Collection[str]:
        """None: Ray ends the actors of a driver that has gone."""
        return ()

    def must_open(self) -> bool:
        """Nothing waits where nothing is to be done."""
        return False

    @contextmanager
    def crew(self, plan: SweepPlan, runs: Sequence[RunPlan]) -> Iterator[Crew]:
        """The cluster, for as long as the sweep lasts."""
        work = replace(plan, folder=plan.folder.absolute())  # means the same wherever a node is

        def group_of(run_id: str) -> Group:
            return plan_groups(plan, (run_id,))[0]

        def work_of(group: Group) -> Bin:
            return Bin(work, self.tasks, (group.run_id,), group.slots_per_node, self.program)

        with _connected():
            self.signals.take_back()
            executor = RayExecutor(SweepFolder(plan.folder), group_of, work_of, self.signals)
            try:
                yield Crew(executor, Everything(plan), ways_of)
            finally:
                executor.close(0)


@contextmanager
def _connected() -> Iterator[None]:
    """A connection to the cluster at RAY_ADDRESS, or to one that is started here; a caller's own is used as it is."""
    ray: Any = importlib.import_module("ray")

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        knock(address or "")
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise LaunchError(f"--executor ray: {address or 'a local cluster'}: {error}; is RAY_ADDRESS right?") from None
    is_there = True
    try:
        yield
    except HeadLostError as error:
        is_there = False
        atexit.register(_leave, error.exit_code)
        raise
    finally:
        if is_there:
            ray.shutdown()


def _leave(code: int) -> None:
    """End this process without Ray's own end: it would ask the head, wait, and exit with a code of its own (2.60)."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def lead_on_ray(
    plan: SweepPlan, tasks: Tasks, progress: Progress, program: Program, signals: Signals
) -> tuple[RunRecord, ...]:
    """Carry a plan out on a Ray cluster.

    Raises:
        LaunchError: Ray is not installed, or its cluster does not answer.
        SweepFolderError: The folder cannot be written, or another driver is at work on it.
        SweepStoppedError: A signal asked for an end; what ran has written checkpoints.
    """
    try:
        import ray  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LaunchError("--executor ray needs Ray: pip install 'flopsfit-ds[ray]'") from None
    return Lifecycle(RaySweep(tasks, program, signals), signals, progress).lead(plan)

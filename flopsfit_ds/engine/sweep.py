"""Carry a plan out: the public entry of the engine."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Literal

from flopsfit_ds.base.errors import FlopsfitError, LaunchError
from flopsfit_ds.engine.fork.server import TRAINING, Program, refuse_import_by_worker
from flopsfit_ds.engine.nodes.control.store import open_control_store
from flopsfit_ds.engine.nodes.launch import Waiters, launched_rank, wait_for_agent
from flopsfit_ds.engine.progress import Progress, Silence
from flopsfit_ds.engine.ray.sweep import lead_on_ray
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slot_sweep import SlotSweep, lead_on_slots
from flopsfit_ds.engine.slurm.sweep import lead_jobs
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.train.order import Tasks

ExecutorName = Literal["auto", "local", "launched", "slurm", "ray"]


def run_sweep(
    plan: SweepPlan,
    *,
    tasks: Tasks,
    executor: ExecutorName = "auto",
    slots: int | None = None,
    progress: Progress | None = None,
    program: Program = TRAINING,
) -> tuple[RunRecord, ...]:
    """Train every run of a plan that has no record yet, and return the records of all.

    Under a launcher every rank calls this. One rank returns; the others lend their slot, never return, and exit when
    the one does, with the sweep's exit code.

    Args:
        plan: What to train, and where its files lie.
        tasks: The task of a run, as its workers get it; must be picklable.
        executor: `auto` takes the launcher's ranks where there is one, else this machine's devices.
        slots: Use so many devices of this machine.
        progress: Hears what happens.
        program: What workers run, if not this package's training.

    Returns:
        One record a run, in the plan's order.

    Raises:
        LaunchError: Slots, launcher and plan do not go together, or workers cannot be started.
        SweepFolderError: The folder cannot be written, or another driver is at work on it.
        SweepStoppedError: A signal asked for an end.
    """
    refuse_import_by_worker()
    if executor == "slurm":
        with Signals() as signals:
            return lead_jobs(plan, tasks, progress or Silence(), program, signals)
    if executor == "ray":
        with Signals() as signals:
            return lead_on_ray(plan, tasks, progress or Silence(), program, signals)
    place = launched_rank(os.environ) if executor in ("auto", "launched") else None
    if executor == "launched" and place is None:
        raise LaunchError("--executor launched: no launcher has started this process; use deepspeed, torchrun or srun")
    if place is not None and place.local_rank != 0:
        sys.exit(wait_for_agent(place))
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        waiters = Waiters(place, signals) if place is not None else None
        code = 1
        try:
            if place is not None and place.node != 0:
                control = open_control_store(place, SweepFolder(plan.folder), os.environ, signals)
                code = SlotSweep(tasks, slots, program, signals).serve(plan, place, control)
                sys.exit(code)
            records = lead_on_slots(plan, tasks, slots, progress or Silence(), program, signals, place)
            code = 0 if all(record.status in ("completed", "diverged") for record in records) else 1
            return records
        except FlopsfitError as error:
            code = error.exit_code
            raise
        finally:
            if waiters is not None:
                waiters.finish(code)

"""The life of a sweep, whatever carries it out: lease, review, write, settle, record, drive, conclude."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flopsfit_ds.base.errors import RecordError, SweepFolderError
from flopsfit_ds.base.storage import JsonLines
from flopsfit_ds.engine.disk.folder import (
    check_trusted,
    conclude,
    record_measured,
    review_plan,
    runs_to_do,
    settle,
    write_plan,
)
from flopsfit_ds.engine.disk.lease import Lease, Right, Rights
from flopsfit_ds.engine.disk.recording import Recorder, git_commit
from flopsfit_ds.engine.driver import Driver
from flopsfit_ds.engine.executor import Executor
from flopsfit_ds.engine.progress import Progress
from flopsfit_ds.engine.schedule.scheduler import Chooser
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.ways import Ways
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder


@dataclass(frozen=True)
class Crew:
    """What carries out the runs that are to be done.

    Attributes:
        executor: Starts them.
        chooser: Decides what starts where.
        ways_of: The ways that they have to carry out a run.
    """

    executor: Executor
    chooser: Chooser
    ways_of: Callable[[RunPlan], Ways]


class Ground(Protocol):
    """What runs are carried out on: the slots of nodes, or the jobs of a cluster."""

    def claim(self, plan: SweepPlan, folder: SweepFolder) -> AbstractContextManager[Sequence[Right]]:
        """Rights to runs that are needed beside the lease of the sweep, for as long as the context is open.

        Raises:
            SweepFolderError: Somebody else is at work on one of the runs.
        """
        ...

    def at_work(self, plan: SweepPlan, folder: SweepFolder) -> Collection[str]:
        """Runs that are carried out although no driver lives: their attempts are not over."""
        ...

    def must_open(self) -> bool:
        """Whether a crew is needed although no run is left to do."""
        ...

    def crew(self, plan: SweepPlan, runs: Sequence[RunPlan]) -> AbstractContextManager[Crew]:
        """What carries out these runs; ended when the context is left, well or not."""
        ...


@dataclass(frozen=True)
class Lifecycle:
    """A plan, and what it takes to bring its runs to their records.

    Attributes:
        ground: What runs are carried out on.
        signals: What stops the sweep.
        progress: Hears what happens.
    """

    ground: Ground
    signals: Signals
    progress: Progress

    def lead(self, plan: SweepPlan) -> tuple[RunRecord, ...]:
        """Carry all of a plan out, as the one driver of its folder.

        Returns:
            One record a run, in the plan's order.

        Raises:
            SweepFolderError: The folder cannot be written, or another driver is at work on it.
            SweepStoppedError: A signal asked for an end.
        """
        folder = SweepFolder(plan.folder)
        folder.prepare()
        lease = Lease.acquire(folder.path / "leases")
        try:
            plan = review_plan(plan, folder, self.progress)
            write_plan(plan, folder)
            with self.ground.claim(plan, folder) as claimed:
                try:
                    self.carry_out(plan, plan.runs, Rights((lease, *claimed)), folder.events)
                finally:
                    records, left = conclude(plan, folder, Recorder(plan, git_commit(Path.cwd())), lease)
            if left:
                raise RecordError(f"{folder.path}: {len(left)} runs lost their records; start the sweep again")
        except OSError as error:
            raise SweepFolderError(
                f"{error.filename or folder.path}: {error.strerror}; what was written is kept; "
                "see to the folder and start again"
            ) from error
        finally:
            lease.release()
        return tuple(records[run.run_id] for run in plan.runs)

    def carry_out(self, plan: SweepPlan, runs: Sequence[RunPlan], right: Right, events: JsonLines) -> None:
        """Carry out those of a plan's runs that have no record.

        Args:
            plan: The sweep.
            runs: What to carry out of it.
            right: The right to write records of these runs.
            events: Where to note what happens.
        """
        folder = SweepFolder(plan.folder)
        at_work = self.ground.at_work(plan, folder)
        missing = runs_to_do(runs, folder)
        if missing:
            check_trusted(plan, folder, missing)
        settle(folder, [run for run in missing if run.run_id not in at_work])
        recorder = Recorder(plan, git_commit(Path.cwd()))
        missing = record_measured(missing, folder, recorder, right, events)
        if not missing and not self.ground.must_open():
            return
        with self.ground.crew(plan, missing) as crew:
            driver = Driver(
                folder,
                events,
                recorder,
                crew.chooser,
                crew.executor,
                right,
                self.signals,
                self.progress,
                plan.spec.execution.max_attempts,
            )
            to_do = [(run, crew.ways_of(run)) for run in missing]
            driver.drive(to_do, [run for run in runs if run not in missing])

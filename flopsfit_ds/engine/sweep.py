"""Carry a plan out: the public entry of the engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flopsfit_ds.engine.agent import NodeAgent
from flopsfit_ds.engine.control import Control, leading, open_control_store
from flopsfit_ds.engine.driver import Driver
from flopsfit_ds.engine.folder import conclude, record_measured, review_plan, runs_to_do, settle, write_plan
from flopsfit_ds.engine.jobs import fitting, job_of
from flopsfit_ds.engine.launch import LaunchedRank, Waiters, launched_rank, wait_for_agent
from flopsfit_ds.engine.launched import LaunchedExecutor
from flopsfit_ds.engine.lease import Lease, Right
from flopsfit_ds.engine.local import LocalExecutor
from flopsfit_ds.engine.node import NodeWorkers
from flopsfit_ds.engine.patience import Patience
from flopsfit_ds.engine.progress import Progress, Silence
from flopsfit_ds.engine.recording import Recorder, git_commit
from flopsfit_ds.engine.schedule import Scheduler
from flopsfit_ds.engine.server import TRAINING_MODULES, ForkServer, pickle_task, refuse_import_by_worker
from flopsfit_ds.engine.signals import Signals, SweepStoppedError
from flopsfit_ds.engine.slot_executor import SlotExecutor
from flopsfit_ds.engine.slots import NodeSlots, Slot, slots_of_this_node
from flopsfit_ds.errors import FlopsfitError, LaunchError, RecordError, SweepFolderError
from flopsfit_ds.plan import RunPlan, SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.storage import JsonLines
from flopsfit_ds.train.order import WorkerTask

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from flopsfit_ds.engine.slurm_bin import LeaseSet

ExecutorName = Literal["auto", "local", "launched", "slurm"]
_MAX_NAMED = 5
Tasks = Callable[[RunPlan], WorkerTask]


@dataclass(frozen=True)
class Program:
    """What workers run.

    Attributes:
        target: `module:function`, called with a `WorkerOrder` and the task; returns the exit code.
        modules: Imported once, by the server that workers are forked from.
    """

    target: str
    modules: tuple[str, ...]


TRAINING = Program("flopsfit_ds.train.worker:run_worker", TRAINING_MODULES)


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
    sweep = Sweep(plan, tasks, slots, progress or Silence(), program)
    if executor == "slurm":
        from flopsfit_ds.engine.slurm_sweep import drive_jobs

        return drive_jobs(plan, tasks, progress or Silence(), program)
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
                control = open_control_store(place, SweepFolder(plan.folder), os.environ)
                code = sweep.serve(place, control.store, signals)
                sys.exit(code)
            records = sweep.drive(place, signals)
            code = 0 if all(record.status in ("completed", "diverged") for record in records) else 1
            return records
        except FlopsfitError as error:
            code = error.exit_code
            raise
        finally:
            if waiters is not None:
                waiters.finish(code)


@dataclass(frozen=True)
class Sweep:
    """A plan, and what it takes to carry it out on slots.

    Attributes:
        plan: What to train.
        tasks: The task of a run.
        num_slots: Devices of this node to use; None for all.
        progress: Hears what happens.
        program: What workers run.
        environment: What says which devices there are.
    """

    plan: SweepPlan
    tasks: Tasks
    num_slots: int | None
    progress: Progress
    program: Program
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def drive(self, place: LaunchedRank | None, signals: Signals) -> tuple[RunRecord, ...]:
        """Carry all of the plan out, as its one driver."""
        folder = SweepFolder(self.plan.folder)
        folder.prepare()
        control = None
        if place is not None and place.num_nodes > 1:
            control = open_control_store(place, folder, os.environ)
        with leading(control):
            lease = Lease.acquire(folder.path / "leases")
        jobs: LeaseSet | None = None
        try:
            with leading(control):
                plan = review_plan(self.plan, folder, self.progress)
                write_plan(plan, folder)
                jobs = _leases_against_jobs(folder, plan.runs)
            recorder = Recorder(plan, git_commit(Path.cwd()))
            try:
                replace(self, plan=plan).carry_out(plan.runs, control, signals, _Rights((lease, jobs)), folder.events)
            finally:
                records, left = conclude(plan, folder, recorder, lease)
            if left:
                raise RecordError(f"{folder.path}: {len(left)} runs lost their records; start the sweep again")
        except OSError as error:
            raise SweepFolderError(
                f"{error.filename or folder.path}: {error.strerror}; what was written is kept; "
                "see to the folder and start again"
            ) from error
        finally:
            if jobs is not None:
                jobs.release()
            lease.release()
        return tuple(records[run.run_id] for run in self.plan.runs)

    def carry_out(
        self,
        runs: Sequence[RunPlan],
        control: Control | None,
        signals: Signals,
        lease: Right,
        events: JsonLines,
    ) -> None:
        """Carry out those of the runs that have no record.

        Args:
            runs: What to carry out.
            control: Of the other nodes of the launch; None with one node.
            signals: What stops the sweep.
            lease: The right to write records of these runs.
            events: Where to note what happens.
        """
        with leading(control):
            self._carry_out(runs, control, signals, lease, events)

    def _carry_out(
        self,
        runs: Sequence[RunPlan],
        control: Control | None,
        signals: Signals,
        lease: Right,
        events: JsonLines,
    ) -> None:
        folder, execution = SweepFolder(self.plan.folder), self.plan.spec.execution
        missing = runs_to_do(runs, folder)
        settle(folder, missing)
        recorder = Recorder(self.plan, git_commit(Path.cwd()))
        missing = record_measured(missing, folder, recorder, lease, events)
        if not missing and control is None:
            return
        node = slots_of_this_node(self.plan.cluster, self.num_slots, self.environment)
        server, workers = self._crew(node)
        executor: SlotExecutor
        patience = Patience.of(missing, execution.hang_timeout)
        if control is not None:
            executor, slots = _reach_nodes(folder, control, (node, workers), signals, patience)
        else:
            executor = LocalExecutor(folder, node, workers, signals, patience)
            slots = node.slots("")
        code = 1
        try:
            jobs = [(run, fitting(job_of(run), len(slots))) for run in missing]
            server.wait_until_ready()
            scheduler = Scheduler(slots, self.plan.spec.placement.points_per_gpu)
            driver = Driver(
                folder, events, recorder, scheduler, executor, lease, signals, self.progress, execution.max_attempts
            )
            driver.drive(jobs, [run for run in runs if run not in missing])
            code = 0
        except SweepStoppedError as stop:
            code = stop.exit_code
            labels = {run.run_id: run.label for run in runs}
            raise SweepStoppedError(f"{stop}{_losses(executor.lost_steps, labels)}", code) from None
        except FlopsfitError as error:
            code = error.exit_code
            raise
        finally:
            executor.close(code)

    def _crew(self, node: NodeSlots) -> tuple[ForkServer, NodeWorkers]:
        runs = {run.run_id: run for run in self.plan.runs}
        server = ForkServer(self.program.target, self.program.modules)
        return server, NodeWorkers(server, lambda run_id: pickle_task(self.tasks(runs[run_id])), node.devices)

    def serve(self, place: LaunchedRank, store: Store, signals: Signals) -> int:
        """Lend this node to the driver of another.

        Returns:
            The sweep's exit code.
        """
        agent = NodeAgent(place, store, SweepFolder(self.plan.folder), signals)
        with agent.beating():
            try:
                node = slots_of_this_node(self.plan.cluster, self.num_slots, self.environment, node=place.node)
                server, workers = self._crew(node)
                server.wait_until_ready()
            except Exception as error:
                agent.refuse(error)
                raise
            return agent.serve(node, workers)


@dataclass(frozen=True)
class _Rights:
    """Several, all of which must hold."""

    rights: tuple[Right, ...]

    def check(self) -> None:
        """See `Right`."""
        for right in self.rights:
            right.check()


def _leases_against_jobs(folder: SweepFolder, runs: Sequence[RunPlan]) -> LeaseSet:
    """The leases of runs to do that jobs of a cluster were given: one may be at work on them, or start while we are.

    Raises:
        SweepFolderError: A job is at work on one of them.
    """
    from flopsfit_ds.engine.slurm_bin import LeaseSet

    given = {run_id for line in JsonLines(folder.path / "slurm" / "jobs.jsonl").read() for run_id in line["run_ids"]}
    to_do = [run.run_id for run in runs if run.run_id in given and not folder.run(run.run_id).record.exists()]
    try:
        return LeaseSet(folder, tuple(to_do))
    except SweepFolderError as error:
        raise SweepFolderError(f"{error}; it is a SLURM job: go on with --executor slurm, or scancel it") from None


def _losses(lost_steps: Mapping[str, int], labels: Mapping[str, str]) -> str:
    """What to add to the message of a stop, for runs that could write no checkpoint."""
    if not lost_steps:
        return ""
    runs = [f"{labels[run_id]} loses {steps} steps" for run_id, steps in lost_steps.items()]
    more = f" and {len(runs) - _MAX_NAMED} more" if len(runs) > _MAX_NAMED else ""
    return f"; ended without a checkpoint: {', '.join(runs[:_MAX_NAMED])}{more}"


def _reach_nodes(
    folder: SweepFolder,
    control: Control,
    here: tuple[NodeSlots, NodeWorkers],
    signals: Signals,
    patience: Patience,
) -> tuple[LaunchedExecutor, tuple[Slot, ...]]:
    """The executor over all nodes of a launch, once all have joined."""
    there = [(node.wait_for_slots(signals), node) for node in control.others]
    everyone = [here[0], *(slots for slots, _ in there)]
    names = [node.hostname for node in everyone]
    slots: list[Slot] = []
    for node in everyone:
        name = node.hostname if names.count(node.hostname) == 1 else f"{node.hostname}/{node.node}"
        slots += node.slots(f"{name}:")
    return LaunchedExecutor(folder, here, there, control.host, signals, patience), tuple(slots)

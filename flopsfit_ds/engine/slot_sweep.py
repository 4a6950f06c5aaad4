"""A sweep on slots: the devices of this machine, or of all nodes whose ranks a launcher has started."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flopsfit_ds.base.errors import FlopsfitError, SweepFolderError
from flopsfit_ds.base.storage import JsonLines
from flopsfit_ds.engine.disk.lease import LeaseSet, Right
from flopsfit_ds.engine.fork.server import ForkAbandonedError, ForkServer, Program, pickle_task
from flopsfit_ds.engine.lifecycle import Crew, Lifecycle
from flopsfit_ds.engine.nodes.agent import NodeAgent
from flopsfit_ds.engine.nodes.control.store import Control, leading, open_control_store
from flopsfit_ds.engine.nodes.launch import LaunchedRank
from flopsfit_ds.engine.nodes.launched_executor import LaunchedExecutor
from flopsfit_ds.engine.nodes.local_executor import LocalExecutor
from flopsfit_ds.engine.nodes.patience import Patience
from flopsfit_ds.engine.nodes.slot_executor import SlotExecutor
from flopsfit_ds.engine.nodes.workers import NodeWorkers
from flopsfit_ds.engine.progress import Progress
from flopsfit_ds.engine.schedule.scheduler import Scheduler
from flopsfit_ds.engine.signals import Signals, SweepStoppedError
from flopsfit_ds.engine.slots import NodeSlots, slots_of_this_node
from flopsfit_ds.engine.ways import fitting, ways_of
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.train.order import Tasks

_MAX_NAMED = 5  # in a message of one line


@dataclass(frozen=True)
class SlotSweep:
    """What it takes to carry a plan out on slots; a `Ground`.

    Attributes:
        tasks: The task of a run.
        num_slots: Devices of this node to use; None for all.
        program: What workers run.
        signals: What stops the sweep.
        control: Of the other nodes of the launch; None with one node.
        environment: What says which devices there are.
    """

    tasks: Tasks
    num_slots: int | None
    program: Program
    signals: Signals
    control: Control | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @contextmanager
    def claim(self, plan: SweepPlan, folder: SweepFolder) -> Iterator[Sequence[Right]]:
        """The leases of runs to do that jobs of a cluster were given: one may be at work on them, or start."""
        given = {
            run_id for line in JsonLines(folder.path / "slurm" / "jobs.jsonl").read() for run_id in line["run_ids"]
        }
        to_do = [run.run_id for run in plan.runs if run.run_id in given and not folder.run(run.run_id).record.exists()]
        try:
            leases = LeaseSet(folder, tuple(to_do))
        except SweepFolderError as error:
            raise SweepFolderError(f"{error}; it is a SLURM job: go on with --executor slurm, or scancel it") from None
        try:
            yield (leases,)
        finally:
            leases.release()

    def at_work(self, plan: SweepPlan, folder: SweepFolder) -> Collection[str]:
        """None: workers end with their driver."""
        return ()

    def must_open(self) -> bool:
        """Other nodes wait for orders, if only for the one to leave."""
        return self.control is not None

    @contextmanager
    def crew(self, plan: SweepPlan, runs: Sequence[RunPlan]) -> Iterator[Crew]:
        """The slots of all nodes, once all have joined, with workers ready to be forked."""
        node = slots_of_this_node(plan.cluster, self.num_slots, self.environment)
        server, workers = self._workers(plan, node)
        folder = SweepFolder(plan.folder)
        patience = Patience.of(runs, plan.spec.execution.hang_timeout)
        executor: SlotExecutor
        if self.control is not None and self.control.roster is not None:
            roster = self.control.roster
            executor = LaunchedExecutor(folder, (node, workers), roster, self.control.host, self.signals, patience)
            slots, num_slots = executor.slots, roster.num_nodes * len(node.devices)
            scheduler = Scheduler(slots, plan.spec.placement.points_per_gpu)
            executor.tell_of_slots(scheduler.change_slots)
            if len(slots) < num_slots:
                scheduler.change_slots(slots)
        else:
            executor = LocalExecutor(folder, node, workers, self.signals, patience)
            slots = node.slots("")
            num_slots = len(slots)
            scheduler = Scheduler(slots, plan.spec.placement.points_per_gpu)
        code = 1
        try:
            self._wait_for(server)
            yield Crew(executor, scheduler, lambda run: fitting(ways_of(run), num_slots))
            code = 0
        except SweepStoppedError as stop:
            code = stop.exit_code
            labels = {run.run_id: run.label for run in plan.runs}
            raise SweepStoppedError(f"{stop}{_losses(executor.lost_steps, labels)}", code) from None
        except FlopsfitError as error:
            code = error.exit_code
            raise
        finally:
            executor.close(code)

    def _wait_for(self, server: ForkServer) -> None:
        try:
            server.wait_until_ready()
        except ForkAbandonedError:
            received = self.signals.received
            assert received is not None
            raise SweepStoppedError(
                f"{received.name}: stopped before anything was trained; the same command goes on from here",
                self.signals.exit_code,
            ) from None

    def _workers(self, plan: SweepPlan, node: NodeSlots) -> tuple[ForkServer, NodeWorkers]:
        runs = {run.run_id: run for run in plan.runs}
        server = ForkServer(self.program.target, self.program.modules, self.signals, plan.spec.execution.hang_timeout)
        return server, NodeWorkers(server, lambda run_id: pickle_task(self.tasks(runs[run_id])), node.devices)

    def serve(self, plan: SweepPlan, place: LaunchedRank, control: Control) -> int:
        """Lend this node to the driver of another.

        Returns:
            The sweep's exit code.
        """
        agent = NodeAgent(place, control, SweepFolder(plan.folder), self.signals)
        with agent.beating():
            try:
                node = slots_of_this_node(plan.cluster, self.num_slots, self.environment, node=place.node)
                server, workers = self._workers(plan, node)
                server.wait_until_ready()
            except Exception as error:
                agent.refuse(error)
                raise
            return agent.serve(node, workers)


def lead_on_slots(
    plan: SweepPlan,
    tasks: Tasks,
    num_slots: int | None,
    progress: Progress,
    program: Program,
    signals: Signals,
    place: LaunchedRank | None,
) -> tuple[RunRecord, ...]:
    """Carry a plan out on the slots of this machine, or as the driver of a launch of several nodes.

    Args:
        plan: What to train.
        tasks: The task of a run.
        num_slots: Devices of this node to use; None for all.
        progress: Hears what happens.
        program: What workers run.
        signals: What stops the sweep.
        place: This process in a launch; None without a launcher.

    Returns:
        One record a run, in the plan's order.
    """
    control = None
    if place is not None and place.num_nodes > 1:
        control = open_control_store(place, SweepFolder(plan.folder), os.environ, signals)
    ground = SlotSweep(tasks, num_slots, program, signals, control)
    with leading(control):
        return Lifecycle(ground, signals, progress).lead(plan)


def _losses(lost_steps: Mapping[str, int], labels: Mapping[str, str]) -> str:
    """What to add to the message of a stop, for runs that could write no checkpoint."""
    if not lost_steps:
        return ""
    runs = [f"{labels[run_id]} loses {steps} steps" for run_id, steps in lost_steps.items()]
    more = f" and {len(runs) - _MAX_NAMED} more" if len(runs) > _MAX_NAMED else ""
    return f"; ended without a checkpoint: {', '.join(runs[:_MAX_NAMED])}{more}"

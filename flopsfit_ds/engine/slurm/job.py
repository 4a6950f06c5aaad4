"""Inside a SLURM job: one task a node carries the job's runs out, and asks for a requeue if stopped."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from flopsfit_ds.base.seal import sweep_seal
from flopsfit_ds.base.storage import JsonLines
from flopsfit_ds.engine.disk.lease import LeaseSet
from flopsfit_ds.engine.fork.server import Program
from flopsfit_ds.engine.lifecycle import Lifecycle
from flopsfit_ds.engine.nodes.control.store import leading, meet
from flopsfit_ds.engine.nodes.launch import LaunchedRank
from flopsfit_ds.engine.progress import Silence
from flopsfit_ds.engine.signals import Signals, SweepStoppedError
from flopsfit_ds.engine.slot_sweep import SlotSweep
from flopsfit_ds.engine.slurm.states import SlurmSilentError, ask_slurm
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.train.order import Tasks

_log = logging.getLogger(__name__)
_DONE = "done"
_END_SECONDS = 180.0
"""Longer than clusters leave between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Bin:
    """A job's work; pickled by submitit, called in each of the job's tasks.

    Attributes:
        plan: The sweep.
        tasks: The task of a run.
        run_ids: Runs to be carried out.
        slots_per_node: Devices of each node.
        program: What workers run.
    """

    plan: SweepPlan
    tasks: Tasks
    run_ids: tuple[str, ...]
    slots_per_node: int
    program: Program

    def __call__(self) -> str:
        """Carry the runs out, in one task of a SLURM job.

        Returns:
            What became of it, for the log.
        """
        node, num_nodes = int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_STEP_NUM_NODES"])
        job = os.environ["SLURM_JOB_ID"]
        name = f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        with Signals() as signals:
            told = self.carry_out(LaunchedRank(node, num_nodes, 0, 1), name, self.plan.folder / "slurm", signals)
            if node == 0 and told != _DONE:
                _await_the_end(job, signals)
        return told

    def carry_out(self, place: LaunchedRank, name: str, notes: Path, signals: Signals) -> str:
        """Carry the runs out, on this node and on those that share the work.

        Args:
            place: This node among them.
            name: Of this try, as no other is called.
            notes: Folder for the address at which the nodes meet, and for what happens.
            signals: What stops the work.

        Returns:
            What became of it, for a log.
        """
        folder = SweepFolder(self.plan.folder)
        control = None
        if place.num_nodes > 1:
            control = meet(place, notes / f"{name}.json", sweep_seal(folder.path), signals)
        ground = SlotSweep(self.tasks, self.slots_per_node, self.program, signals, control, _environment())
        if place.node != 0:
            assert control is not None
            return f"left with {ground.serve(self.plan, place, control)}"
        leases = LeaseSet(folder, self.run_ids)
        try:
            events = JsonLines(notes / f"{name.partition('.')[0]}.events.jsonl")
            runs = [run for run in self.plan.runs if run.run_id in self.run_ids]
            with leading(control):
                Lifecycle(ground, signals, Silence()).carry_out(self.plan, runs, leases, events)
            return _DONE
        except SweepStoppedError as error:
            return str(error)
        finally:
            leases.release()


def _await_the_end(job: str, signals: Signals) -> None:
    """After a preemption's own signal, ask to be requeued. SIGTERM alone may be that, the time limit or `scancel`.

    Whoever cancels a job does not want it back, and a preempted one is requeued by SLURM if it is still there when its
    time is over: so wait for what comes.
    """
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        if signals.asks_for_requeue:
            try:
                ask_slurm(["scontrol", "requeue", job])
                return
            except SlurmSilentError as error:
                _log.warning("job %s is not requeued yet: %s", job, error)
        signals.wait(5.0)


def _environment() -> dict[str, str]:
    """What a node offers is the job's matter, not that of variables by which SLURM would look like a launcher."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") and name != "RANK"}

"""A sweep whose runs are SLURM jobs: the same folder, the same records, and a driver that may come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from flopsfit_ds.engine.driver import Driver
from flopsfit_ds.engine.executor import Assignment
from flopsfit_ds.engine.folder import conclude, record_measured, review_plan, runs_to_do, settle, write_plan
from flopsfit_ds.engine.jobs import job_of
from flopsfit_ds.engine.lease import Lease
from flopsfit_ds.engine.progress import Progress
from flopsfit_ds.engine.recording import Recorder, git_commit
from flopsfit_ds.engine.schedule import Waiting
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.engine.slurm_bin import Bin
from flopsfit_ds.engine.slurm_executor import SlurmExecutor, find_partition
from flopsfit_ds.engine.slurm_plan import Submission, plan_submissions
from flopsfit_ds.engine.sweep import Program
from flopsfit_ds.errors import LaunchError, RecordError
from flopsfit_ds.plan import RunPlan, SweepPlan
from flopsfit_ds.records import Attempt, RunRecord, SweepFolder
from flopsfit_ds.train.order import WorkerTask


class Everything:
    """Starts all runs at once, each in the layout that the plan chose: the cluster's scheduler decides the rest."""

    slots: tuple[Slot, ...] = ()

    def __init__(self, plan: SweepPlan) -> None:
        self._jobs = {run.run_id: job_of(run) for run in plan.runs}

    def choose(self, waiting: Sequence[Waiting]) -> list[Assignment]:
        """See `Chooser`."""
        return [Assignment(run.run_id, self._jobs[run.run_id].planned, ()) for run in waiting]

    def forecast(self, waiting: Sequence[Waiting]) -> None:
        """None: the cluster's queue is not known here."""

    def note_step(self, run_id: str, fraction: float) -> None:
        """See `Chooser`."""

    def note_end(self, assignment: Assignment, attempts: Sequence[Attempt]) -> None:
        """See `Chooser`."""


def drive_jobs(
    plan: SweepPlan, tasks: Callable[[RunPlan], WorkerTask], progress: Progress, program: Program
) -> tuple[RunRecord, ...]:
    """Carry a plan out as SLURM jobs, and wait for them.

    Raises:
        LaunchError: No SLURM, no submitit, no such partition, or sbatch refuses.
        SweepFolderError: The folder cannot be written, or another driver is at work on it.
        SweepStoppedError: A signal asked for an end; jobs go on, and the same command takes them up.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise LaunchError("--executor slurm needs submitit: pip install 'flopsfit-ds[slurm]'") from None
    execution = plan.spec.execution
    partition = find_partition(execution.slurm_partition)
    folder = SweepFolder(plan.folder)
    folder.prepare()
    (folder.path / "slurm").mkdir(exist_ok=True)
    lease = Lease.acquire(folder.path / "leases")
    try:
        plan = review_plan(plan, folder, progress)

        def work_of(submission: Submission) -> Bin:
            return Bin(_absolute(plan), tasks, submission.run_ids, submission.slots_per_node, program)

        def plan_jobs(run_ids: Sequence[str]) -> tuple[Submission, ...]:
            return plan_submissions(plan, run_ids, partition.max_minutes)

        with Signals() as signals:
            write_plan(plan, folder)
            executor = SlurmExecutor(
                folder, plan_jobs, work_of, partition, execution.slurm_account, execution.slurm_max_jobs, signals
            )
            missing = runs_to_do(plan.runs, folder)
            settle(folder, [run for run in missing if run.run_id not in executor.runs_in_jobs])
            recorder = Recorder(plan, git_commit(Path.cwd()))
            missing = record_measured(missing, folder, recorder, lease, folder.events)
            driver = Driver(
                folder,
                folder.events,
                recorder,
                Everything(plan),
                executor,
                lease,
                signals,
                progress,
                execution.max_attempts,
            )
            driver.drive([(run, job_of(run)) for run in missing], [run for run in plan.runs if run not in missing])
        records, left = conclude(plan, folder, recorder, lease)
        if left:
            raise RecordError(f"{folder.path}: {len(left)} runs lost their records; start the sweep again")
    finally:
        lease.release()
    return tuple(records[run.run_id] for run in plan.runs)


def _absolute(plan: SweepPlan) -> SweepPlan:
    """The plan with a folder that means the same wherever a job starts."""
    return replace(plan, folder=plan.folder.absolute())

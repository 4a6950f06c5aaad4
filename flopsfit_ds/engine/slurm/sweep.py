"""A sweep whose runs are SLURM jobs: the same folder, the same records, and a driver that may come and go."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.engine.disk.lease import Right
from flopsfit_ds.engine.executor import Assignment
from flopsfit_ds.engine.fork.server import Program
from flopsfit_ds.engine.lifecycle import Crew, Lifecycle
from flopsfit_ds.engine.progress import Progress
from flopsfit_ds.engine.schedule.scheduler import Waiting
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.engine.slurm.executor import Partition, SlurmExecutor, find_partition
from flopsfit_ds.engine.slurm.job import Bin
from flopsfit_ds.engine.slurm.submissions import Submission, plan_submissions
from flopsfit_ds.engine.ways import ways_of
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import Attempt, RunRecord, SweepFolder
from flopsfit_ds.train.order import Tasks


class Everything:
    """Starts all runs at once, each in the layout that the plan chose: the cluster's scheduler decides the rest."""

    slots: tuple[Slot, ...] = ()

    def __init__(self, plan: SweepPlan) -> None:
        self._ways = {run.run_id: ways_of(run) for run in plan.runs}

    def choose(self, waiting: Sequence[Waiting]) -> list[Assignment]:
        """See `Chooser`."""
        return [Assignment(run.run_id, self._ways[run.run_id].planned, ()) for run in waiting]

    def forecast(self, waiting: Sequence[Waiting]) -> None:
        """None: the cluster's queue is not known here."""

    def note_step(self, run_id: str, fraction: float) -> None:
        """See `Chooser`."""

    def note_end(self, assignment: Assignment, attempts: Sequence[Attempt]) -> None:
        """See `Chooser`."""


class JobSweep:
    """What it takes to carry a plan out as jobs of a cluster; a `Ground`."""

    def __init__(self, tasks: Tasks, program: Program, partition: Partition, signals: Signals) -> None:
        """Bring the parts together.

        Args:
            tasks: The task of a run.
            program: What workers run.
            partition: Where jobs go.
            signals: What stops the driver; jobs go on.
        """
        self._tasks = tasks
        self._program = program
        self._partition = partition
        self._signals = signals
        self._executor: SlurmExecutor | None = None

    @contextmanager
    def claim(self, plan: SweepPlan, folder: SweepFolder) -> Iterator[Sequence[Right]]:
        """None: each job takes the leases of its own runs."""
        (folder.path / "slurm").mkdir(exist_ok=True)
        yield ()

    def at_work(self, plan: SweepPlan, folder: SweepFolder) -> Collection[str]:
        """Runs of jobs that a driver before this one submitted, and that are in the cluster still."""
        work = replace(plan, folder=plan.folder.absolute())  # means the same wherever a job starts

        def work_of(submission: Submission) -> Bin:
            return Bin(work, self._tasks, submission.run_ids, submission.slots_per_node, self._program)

        def plan_jobs(run_ids: Sequence[str]) -> tuple[Submission, ...]:
            return plan_submissions(plan, run_ids, self._partition.max_minutes)

        execution = plan.spec.execution
        self._executor = SlurmExecutor(
            folder,
            plan_jobs,
            work_of,
            self._partition,
            execution.slurm_account,
            execution.slurm_max_jobs,
            self._signals,
        )
        return self._executor.runs_in_jobs

    def must_open(self) -> bool:
        """Nothing waits where nothing is to be done."""
        return False

    @contextmanager
    def crew(self, plan: SweepPlan, runs: Sequence[RunPlan]) -> Iterator[Crew]:
        """The cluster; jobs stay in it when the driver leaves."""
        assert self._executor is not None
        yield Crew(self._executor, Everything(plan), ways_of)


def lead_jobs(
    plan: SweepPlan, tasks: Tasks, progress: Progress, program: Program, signals: Signals
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
    partition = find_partition(plan.spec.execution.slurm_partition)
    return Lifecycle(JobSweep(tasks, program, partition, signals), signals, progress).lead(plan)

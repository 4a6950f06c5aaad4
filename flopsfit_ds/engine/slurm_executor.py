"""The SLURM executor: runs as jobs, submitted by submitit; a job goes on when the process that submitted it is gone."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flopsfit_ds.engine.attempts import Exits, close_attempt, open_attempt, read_attempts, settle_open_attempts
from flopsfit_ds.engine.executor import Assignment, Ending, Report
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slurm_plan import Submission
from flopsfit_ds.engine.slurm_states import ENDED, JobStates, ask_slurm
from flopsfit_ds.errors import LaunchError
from flopsfit_ds.records import Attempt, SweepFolder
from flopsfit_ds.storage import JsonLines

if TYPE_CHECKING:
    from submitit import SlurmJob

_POLL_SECONDS = 3.0
_TAIL_CHARACTERS = 400


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster.

    Attributes:
        name: Its name.
        max_minutes: Longest time limit; None for none.
    """

    name: str
    max_minutes: int | None


@dataclass
class _LiveJob:
    """A job in the cluster."""

    job: SlurmJob
    run_ids: tuple[str, ...]
    state: str = "PENDING"


def find_partition(name: str | None) -> Partition:
    """The partition of that name, or the default one.

    Raises:
        LaunchError: There is none, or no SLURM, or it does not answer.
    """
    for program in ("sbatch", "squeue", "sinfo"):
        if shutil.which(program) is None:
            raise LaunchError(f"--executor slurm: {program} is not installed here; run on a login node of the cluster")
    limits = dict(line.split() for line in ask_slurm(["sinfo", "-h", "-o", "%P %l"]).splitlines())
    for found, limit in limits.items():
        if found.rstrip("*") == name or (name is None and found.endswith("*")):
            return Partition(found.rstrip("*"), _minutes(limit))
    known = ", ".join(sorted(found.rstrip("*") for found in limits))
    raise LaunchError(f"execution.slurm_partition: the cluster has no partition {name!r}; it has {known}")


def _minutes(limit: str) -> int | None:
    """SLURM's `days-hours:minutes:seconds`, rounded up."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return None  # infinite
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + (seconds > 0)


class SlurmExecutor:
    """Runs as jobs of a cluster."""

    def __init__(
        self,
        folder: SweepFolder,
        plan_jobs: Callable[[Sequence[str]], Sequence[Submission]],
        work_of: Callable[[Submission], Callable[[], str]],
        partition: Partition,
        account: str | None,
        max_jobs: int,
        signals: Signals,
    ) -> None:
        """Take charge, also of jobs that an earlier process of this sweep has submitted.

        Args:
            folder: The sweep's folder, on a file system that the nodes share.
            plan_jobs: Makes jobs of runs.
            work_of: What a job does, picklable.
            partition: Where jobs are submitted to.
            account: Whom they are charged to; None for the user's default.
            max_jobs: Jobs in the queue at once.
            signals: Whose arrival ends a wait.
        """
        self._folder = folder
        self._plan_jobs = plan_jobs
        self._work_of = work_of
        self._partition = partition
        self._account = account
        self._max_jobs = max_jobs
        self._signals = signals
        self._ledger = JsonLines(folder.path / "slurm" / "jobs.jsonl")
        self._queue: dict[str, Assignment] = {}
        self._live: dict[str, _LiveJob] = {}
        self._running: set[str] = set()
        self._lost: dict[str, str] = {}
        self._told: dict[str, int] = {}
        self._left: set[str] = set()
        self._last_look = 0.0
        self._states = JobStates()
        self._adopt()

    @property
    def runs_in_jobs(self) -> set[str]:
        """Runs that jobs of the cluster are carrying out, or are going to."""
        return {run_id for live in self._live.values() for run_id in live.run_ids}

    def _adopt(self) -> None:
        """Take up jobs that were submitted before and have not ended."""
        from submitit import SlurmJob

        for line in self._ledger.read():
            job = SlurmJob(folder=self._submitit_folder, job_id=line["job_id"])
            self._live[line["job_id"]] = _LiveJob(job, tuple(line["run_ids"]))
        if self._live:
            states = self._states.ask(self._live)
            self._live = {key: live for key, live in self._live.items() if states[key] not in ENDED}

    @property
    def _submitit_folder(self) -> Path:
        return (self._folder.path / "slurm" / "jobs").absolute()

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """See `Executor`; runs that a job already has are only watched, others wait for their turn in the queue."""
        taken = self.runs_in_jobs
        for assignment in assignments:
            self._running.add(assignment.run_id)
            if assignment.run_id not in taken:
                self._queue[assignment.run_id] = assignment
        self._submit_queue()

    def _submit_queue(self) -> None:
        if not self._queue:
            return
        for submission in self._plan_jobs(list(self._queue)):
            if len(self._live) >= self._max_jobs:
                return
            job = self._submit_job(submission)
            self._ledger.append({"job_id": job.job_id, "run_ids": list(submission.run_ids), "name": submission.name})
            self._live[job.job_id] = _LiveJob(job, submission.run_ids)
            for run_id in submission.run_ids:
                del self._queue[run_id]

    def _submit_job(self, submission: Submission) -> SlurmJob:
        import submitit
        from submitit.core.utils import FailedJobError

        executor = submitit.SlurmExecutor(folder=self._submitit_folder)
        limit = self._partition.max_minutes
        executor.update_parameters(
            job_name=submission.name,
            partition=self._partition.name,
            time=submission.minutes if limit is None else min(submission.minutes, limit),
            nodes=submission.nodes,
            ntasks_per_node=1,
            cpus_per_task=submission.cpus_per_node,
            mem=f"{submission.memory_bytes // 2**20}M",
            stderr_to_stdout=True,
            additional_parameters={"requeue": True},
            **({"gpus_per_node": submission.gpus_per_node} if submission.gpus_per_node else {}),
            **({"account": self._account} if self._account else {}),
        )
        try:
            return executor.submit(self._work_of(submission))  # pyright: ignore[reportReturnType]
        except FailedJobError as error:
            raise LaunchError(f"sbatch refused {submission.name}: {str(error)[-_TAIL_CHARACTERS:]}") from None

    def poll(self, timeout_seconds: float) -> list[Report]:
        """See `Executor`."""
        self._signals.wait(timeout_seconds)
        self._submit_queue()
        reports = [Report(run_id, ended=True) for run_id in self._left]
        if time.monotonic() - self._last_look < _POLL_SECONDS:
            return reports  # a thousand runs on a network file system are not looked at twice a second
        self._look()
        watched = self._running - self._left
        reports += [Report(run_id, ended=True) for run_id in watched if self._folder.run(run_id).record.exists()]
        for key, live in list(self._live.items()):
            if live.state in ENDED:
                reports += self._bury(key, live)
        known = {report.run_id for report in reports}
        return reports + [self._progress_of(run_id) for run_id in self._running - known]

    def _look(self) -> None:
        """Ask SLURM for the states of all jobs at once."""
        self._last_look = time.monotonic()
        states = self._states.look(self._live) if self._live else None
        for key, state in (states or {}).items():
            self._live[key].state = state

    def _bury(self, key: str, live: _LiveJob) -> list[Report]:
        """A job has ended: those of its runs that have no record were lost with it."""
        del self._live[key]
        reports = []
        for run_id in live.run_ids:
            if run_id in self._running and not self._folder.run(run_id).record.exists():
                self._lost[run_id] = f"SLURM job {key} ended as {live.state}{_last_words(live.job)}"
                reports.append(Report(run_id, ended=True))
        return reports

    def _progress_of(self, run_id: str) -> Report:
        metrics = self._folder.run(run_id).metrics.last()
        return Report(run_id, ended=False, step=metrics["step"] if metrics else None)

    def cancel(self, run_id: str, how: Ending) -> None:
        """See `Executor`; the job stays in the cluster, and the same command takes it up again."""
        self._left.add(run_id)

    def collect(self, run_id: str) -> tuple[Attempt, ...]:
        """See `Executor`; of a run that was lost with its job, the attempt left open, or one in its place."""
        self._running.discard(run_id)
        self._queue.pop(run_id, None)
        folder = self._folder.run(run_id)
        reason = self._lost.pop(run_id, None)
        if run_id in self._left:
            self._left.discard(run_id)
            return ()
        if reason is None:
            return self._news(run_id, read_attempts(folder))
        exits = Exits({}, reason, "killed", None)
        settled = settle_open_attempts(folder, exits)
        if not settled:
            (submission,) = self._plan_jobs([run_id])
            attempt = open_attempt(folder, Assignment(run_id, submission.layout, ()))
            close_attempt(folder, attempt, exits, 0.0)
        return self._news(run_id, read_attempts(folder))

    def _news(self, run_id: str, attempts: Sequence[Attempt]) -> tuple[Attempt, ...]:
        """Attempts that have not been told before."""
        told = self._told.get(run_id, 0)
        self._told[run_id] = max((attempt.number for attempt in attempts), default=told)
        return tuple(attempt for attempt in attempts if attempt.number > told)

    def close(self, exit_code: int) -> None:
        """See `Executor`; jobs in the cluster go on."""


def _last_words(job: SlurmJob) -> str:
    """The end of a job's log: what an administrator's cancellation or a failed start left there."""
    try:
        text = job.paths.stdout.read_text(errors="replace").strip()
    except OSError:
        return ""
    return f": {text[-_TAIL_CHARACTERS:]}" if text else ""

"""The SLURM executor: runs as jobs, submitted by submitit; a job goes on when the process that submitted it is gone."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.base.storage import JsonLines
from flopsfit_ds.engine.disk.attempts import (
    Exits,
    close_attempt,
    open_attempt,
    read_attempts,
    settle_open_attempts,
)
from flopsfit_ds.engine.executor import Assignment, Ending, Report
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slurm.states import ENDED, NOT_BY_THE_RUN, JobStates, ask_slurm
from flopsfit_ds.engine.slurm.submissions import Submission
from flopsfit_ds.records import Attempt, SweepFolder

if TYPE_CHECKING:
    from submitit import SlurmJob

_log = logging.getLogger(__name__)
_POLL_SECONDS = 3.0
"""Between two looks at the queue: each is a call to a controller that all users share."""
_TAIL_CHARACTERS = 400  # the end of what SLURM says, where its reason stands
_MAX_FUTILE_JOBS = 5
"""Of the same runs, one after another, in none of which one got further."""
_INNOCENT = ("interrupted", "preempted")


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
    """A job in the cluster.

    Attributes:
        job: Submitit's.
        run_ids: Its runs.
        attempts_before: Number of the last attempt of each when it was submitted.
        state: SLURM's word for it.
    """

    job: SlurmJob
    run_ids: tuple[str, ...]
    attempts_before: dict[str, int]
    state: str = "PENDING"


@dataclass
class _Luck:
    """How a run fared in jobs so far.

    Attributes:
        step: The furthest that it was seen at.
        futile_jobs: Jobs that were lost since a run that shared them got further.
    """

    step: int
    futile_jobs: list[str]


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
        self._luck: dict[str, _Luck] = {}
        self._given_up: dict[str, str] = {}
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
            self._live[line["job_id"]] = _LiveJob(job, tuple(line["run_ids"]), line.get("attempts_before", {}))
        if self._live:
            states = self._states.ask(self._live)
            self._live = {key: live for key, live in self._live.items() if states[key] not in ENDED}
        self._gets_further(self.runs_in_jobs)

    @property
    def _submitit_folder(self) -> Path:
        return (self._folder.path / "slurm" / "jobs").absolute()

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """See `Executor`; runs that a job already has are only watched, others wait for their turn in the queue."""
        taken = self.runs_in_jobs
        for assignment in assignments:
            self._running.add(assignment.run_id)
            if assignment.run_id not in taken and assignment.run_id not in self._given_up:
                self._queue[assignment.run_id] = assignment
        self._submit_queue()

    def _submit_queue(self) -> None:
        if not self._queue:
            return
        for submission in self._plan_jobs(list(self._queue)):
            if len(self._live) >= self._max_jobs:
                return
            before = {run_id: self._last_attempt(run_id) for run_id in submission.run_ids}
            job = self._submit_job(submission)
            line = {"job_id": job.job_id, "run_ids": list(submission.run_ids), "name": submission.name}
            self._ledger.append({**line, "attempts_before": before})
            self._live[job.job_id] = _LiveJob(job, submission.run_ids, before)
            self._gets_further(submission.run_ids)
            for run_id in submission.run_ids:
                del self._queue[run_id]

    def _submit_job(self, submission: Submission) -> SlurmJob:
        import submitit
        from submitit.core.utils import FailedJobError

        executor = submitit.SlurmExecutor(folder=self._submitit_folder)
        limits = [each for each in (submission.minutes, self._partition.max_minutes) if each is not None]
        executor.update_parameters(
            job_name=submission.name,
            partition=self._partition.name,
            time=min(limits, default=0),  # none is asked for with 0
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

    def _last_attempt(self, run_id: str) -> int:
        return max(self._folder.run(run_id).attempt_numbers(), default=0)

    def poll(self, timeout_seconds: float) -> list[Report]:
        """See `Executor`.

        Raises:
            LaunchError: SLURM does not answer, or job after job was lost and no other is left to wait for.
        """
        self._signals.wait(timeout_seconds)
        self._submit_queue()
        reports = [Report(run_id, ended=True) for run_id in self._left]
        if time.monotonic() - self._last_look < _POLL_SECONDS:
            return reports  # a thousand runs on a network file system are not looked at twice a second
        self._look()
        watched = self._running - self._left
        if watched and watched <= self._given_up.keys():
            raise LaunchError("; ".join(sorted(set(self._given_up.values()))))
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
        lost = [run for run in live.run_ids if run in self._running and not self._folder.run(run).record.exists()]
        if not lost:
            return []
        reason = f"SLURM job {key} ended as {live.state}{_last_words(live.job)}"
        self._folder.log_event("job lost", job_id=key, state=live.state, run_ids=lost)
        begun = any(self._attempts_in(live, run_id) for run_id in live.run_ids)
        further = self._gets_further(live.run_ids)
        for run_id in lost:
            self._note_loss(run_id, live, reason, begun)
            futile = self._luck[run_id].futile_jobs
            if further:
                futile.clear()
            elif all(attempt.outcome in _INNOCENT for attempt in self._attempts_in(live, run_id)):
                futile.append(key)
        self._give_up([run_id for run_id in lost if len(self._luck[run_id].futile_jobs) >= _MAX_FUTILE_JOBS], reason)
        return [Report(run_id, ended=True) for run_id in lost if run_id not in self._left]

    def _attempts_in(self, live: _LiveJob, run_id: str) -> list[Attempt]:
        before = live.attempts_before.get(run_id, 0)
        return [attempt for attempt in read_attempts(self._folder.run(run_id)) if attempt.number > before]

    def _note_loss(self, run_id: str, live: _LiveJob, reason: str, begun: bool) -> None:
        """Close the attempt that a lost job left open; of a run that it never began, note that.

        What the cluster does to a job is no failure of a run, and what one run does to a job is none of another's.

        Args:
            run_id: The run.
            live: The job.
            reason: How it ended.
            begun: Whether any of its runs was begun.
        """
        folder = self._folder.run(run_id)
        is_begun = bool(self._attempts_in(live, run_id))
        innocent = live.state in NOT_BY_THE_RUN or (begun and not is_begun)
        exits = Exits({}, reason, "interrupted" if innocent else "killed", None)
        settled = settle_open_attempts(folder, exits)
        if not (settled or is_begun):
            (submission,) = self._plan_jobs([run_id])
            attempt = open_attempt(folder, Assignment(run_id, submission.layout, ()))
            close_attempt(folder, attempt, exits, 0.0)

    def _gets_further(self, run_ids: Iterable[str]) -> bool:
        """Whether one of these runs has ended or is further than it ever was; from now on that is the measure."""
        further = False
        for run_id in run_ids:
            folder = self._folder.run(run_id)
            luck = self._luck.setdefault(run_id, _Luck(0, []))
            metrics = folder.metrics.last()
            step = metrics["step"] if metrics else 0
            further |= step > luck.step or folder.record.exists()
            luck.step = max(step, luck.step)
        return further

    def _give_up(self, run_ids: Sequence[str], reason: str) -> None:
        """Submit these runs no more; the driver stops once nothing else is left to wait for."""
        if not run_ids:
            return
        jobs = self._luck[run_ids[0]].futile_jobs
        message = (
            f"{len(jobs)} SLURM jobs in a row were lost before a run of theirs got further; the last: {reason}. "
            f"See `sacct -j {','.join(jobs)}`, `sinfo -R` and {self._submitit_folder}; if nodes are at fault or the "
            "partition's time limit is too short, choose another (execution.slurm_partition), then start the same "
            f"command again. Not submitted again until then: {', '.join(run_ids)}"
        )
        for run_id in run_ids:
            self._given_up[run_id] = message
        _log.warning("%s", message)

    def _progress_of(self, run_id: str) -> Report:
        metrics = self._folder.run(run_id).metrics.last()
        return Report(run_id, ended=False, step=metrics["step"] if metrics else None)

    def cancel(self, run_id: str, how: Ending) -> None:
        """See `Executor`; the job stays in the cluster, and the same command takes it up again."""
        self._left.add(run_id)

    def collect(self, run_id: str) -> tuple[Attempt, ...]:
        """See `Executor`."""
        self._running.discard(run_id)
        self._queue.pop(run_id, None)
        if run_id in self._left:
            self._left.discard(run_id)
            return ()
        return self._news(run_id, read_attempts(self._folder.run(run_id)))

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

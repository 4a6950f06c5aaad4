"""The driver: decides what runs next, tries again what failed, and writes what is known."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flopsfit_ds.base.errors import LaunchError, SweepFolderError
from flopsfit_ds.base.storage import JsonLines
from flopsfit_ds.engine.disk.attempts import is_storage_failure, newest_outcome, read_attempts
from flopsfit_ds.engine.disk.folder import whole_records
from flopsfit_ds.engine.disk.lease import Right
from flopsfit_ds.engine.disk.recording import Recorder
from flopsfit_ds.engine.disk.retry import forgiven_attempts
from flopsfit_ds.engine.executor import Assignment, Executor, Report
from flopsfit_ds.engine.nodes.control.mailbox import JOIN_PATIENCE_SECONDS
from flopsfit_ds.engine.progress import Progress
from flopsfit_ds.engine.schedule.scheduler import Chooser, Waiting
from flopsfit_ds.engine.schedule.suspects import NUM_RUNS
from flopsfit_ds.engine.signals import Signals, SweepStoppedError
from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.engine.ways import Verdict, Ways, decide
from flopsfit_ds.plan.sweep_plan import RunPlan
from flopsfit_ds.records import Attempt, RunRecord, SweepFolder

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.5
"""Longest wait for a report: as often as an executor looks at its workers' heartbeats."""
_LOSS_SECONDS = 2.0
"""How often the loss that is shown of a run is read."""


@dataclass
class _Course:
    """A run that has no record yet."""

    run: RunPlan
    ways: Ways
    attempts: tuple[Attempt, ...]
    verdict: Verdict
    shown_loss: float | None = None
    told: str | None = None
    next_look: float = 0.0


class Driver:
    """Carries a sweep's runs out to their records."""

    def __init__(
        self,
        folder: SweepFolder,
        events: JsonLines,
        recorder: Recorder,
        scheduler: Chooser,
        executor: Executor,
        lease: Right,
        signals: Signals,
        progress: Progress,
        max_attempts: int,
    ) -> None:
        """Bring the parts together.

        Args:
            folder: The sweep's folder.
            events: Where to note what happens.
            recorder: Makes records.
            scheduler: Decides what starts where.
            executor: Starts it.
            lease: The right to write.
            signals: What stops the sweep.
            progress: Hears what happens.
            max_attempts: Failures that a run may have without getting further.
        """
        self._folder = folder
        self._events = events
        self._recorder = recorder
        self._scheduler = scheduler
        self._num_slots = len(scheduler.slots)
        self._executor = executor
        self._lease = lease
        self._signals = signals
        self._progress = progress
        self._max_attempts = max_attempts
        self._courses: dict[str, _Course] = {}
        self._running: dict[str, Assignment] = {}
        self._measured: list[Attempt] = []
        self._idle_since = time.monotonic()
        self._began, self._began_cpu = time.monotonic(), time.process_time()

    def drive(self, to_do: Sequence[tuple[RunPlan, Ways]], done: Sequence[RunPlan]) -> None:
        """Carry out all runs.

        Args:
            to_do: Runs without a record.
            done: Runs with one, for whoever watches.

        Raises:
            SweepStoppedError: A signal asked for an end; what ran has written checkpoints.
            SweepFolderError: The folder cannot be written any more, or another driver has taken over.
            LaunchError: No workers can be started.
        """
        records = whole_records(done, self._folder)
        self._progress.on_sweep([run for run, _ in to_do], records, self._scheduler.slots)
        for run, ways in to_do:
            attempts = read_attempts(self._folder.run(run.run_id))
            self._courses[run.run_id] = _Course(run, ways, attempts, self._decide(ways, attempts))
        for course in list(self._courses.values()):
            self._finish_if_over(course)
        self._announce()
        while self._courses:
            self._lease.check()
            if self._signals.stops:
                self._stop()
            self._start()
            self._see_that_something_runs()
            for report in self._executor.poll(_TICK_SECONDS):
                self._hear(report)
        self._sum_up()

    def _log(self, kind: str, **details: Any) -> None:
        self._events.append({"time": time.time(), "event": kind, **details})

    def _announce(self) -> None:
        """Note what the schedule should take, beside what no schedule can beat."""
        self._began, self._began_cpu = time.monotonic(), time.process_time()
        waiting = self._waiting()
        forecast = self._scheduler.forecast(waiting) if waiting else None
        if forecast is not None:
            self._log(
                "plan",
                num_runs=len(waiting),
                num_slots=self._num_slots,
                makespan_seconds=forecast.makespan_seconds,
                lower_bound_seconds=forecast.lower_bound_seconds,
            )

    def _sum_up(self) -> None:
        """Note what the schedule took, beside the lower bound from measured times."""
        num_slots = self._num_slots
        if self._measured and num_slots:
            work = sum(attempt.seconds * attempt.world_size for attempt in self._measured)
            self._log(
                "finish",
                num_slots=num_slots,
                makespan_seconds=time.monotonic() - self._began,
                driver_cpu_seconds=time.process_time() - self._began_cpu,
                lower_bound_seconds=max(work / num_slots, max(attempt.seconds for attempt in self._measured)),
            )

    def _waiting(self) -> list[Waiting]:
        return [
            Waiting(
                run_id,
                course.verdict.layouts,
                course.ways.num_steps,
                course.ways.points_per_slot,
                course.verdict.avoid,
                course.verdict.spare,
            )
            for run_id, course in self._courses.items()
            if run_id not in self._running and not self._waits_for_trunk(course.run)
        ]

    def _waits_for_trunk(self, run: RunPlan) -> bool:
        """Whether a run's trunk is still to come to where the run leaves it; one that will not come is done without."""
        branch = run.branch
        if branch is None or branch.trunk not in self._courses:
            return False
        return not any(self._folder.run(branch.trunk).kept(branch.step).glob("step-*"))

    def _let_go(self, run: RunPlan) -> None:
        """Remove what the trunk of a run that has ended kept for it."""
        if run.branch is not None:
            shutil.rmtree(self._folder.run(run.branch.trunk).kept(run.branch.step), ignore_errors=True)

    def _start(self) -> None:
        before = self._scheduler.slots
        assignments = self._scheduler.choose(self._waiting())
        self._tell_of_slots(before, self._scheduler.slots)
        for assignment in assignments:
            course = self._courses[assignment.run_id]
            self._running[assignment.run_id] = assignment
            self._log(
                "start",
                run_id=assignment.run_id,
                label=course.run.label,
                slots=[slot.name for slot in assignment.slots],
                layout=assignment.layout.strategy.label,
                predicted_seconds=course.ways.expected_seconds(assignment.layout),
            )
            self._progress.on_start(course.run, assignment.slots)
        self._executor.submit(assignments)

    def _see_that_something_runs(self) -> None:
        """Wait for lost nodes as long as for nodes at the start, if no slots that are left hold a run.

        Raises:
            LaunchError: That is over.
        """
        now = time.monotonic()
        if self._running:
            self._idle_since = now
        elif now - self._idle_since > JOIN_PATIENCE_SECONDS:
            least = min(layout.num_slots for course in self._courses.values() for layout in course.ways.layouts)
            raise LaunchError(
                f"{len(self._courses)} runs need {least} slots or more and {len(self._scheduler.slots)} are there, for "
                f"{JOIN_PATIENCE_SECONDS:.0f} s now; launched again, the sweep goes on from its checkpoints"
            )

    def _tell_of_slots(self, before: Sequence[Slot], after: Sequence[Slot]) -> None:
        """Note and say which slots have been set aside, and which are in service again."""
        for slot in before:
            if slot not in after:
                self._log("set_aside", slot=slot.name)
                _log.warning(
                    "slot %s is set aside: %d points failed there before their first step, and no step has been made "
                    "there since; see to its device, then start the sweep again to use it",
                    slot.name,
                    NUM_RUNS,
                )
        for slot in after:
            if slot not in before:
                self._log("in_service", slot=slot.name)
                _log.warning("slot %s is in service again: points fail elsewhere too, or need it", slot.name)

    def _hear(self, report: Report) -> None:
        course = self._courses[report.run_id]
        if report.step is not None:
            self._scheduler.note_step(report.run_id, report.step / course.ways.num_steps)
            if time.monotonic() >= course.next_look:
                metrics = self._folder.run(report.run_id).metrics.last()
                course.shown_loss = metrics.get("loss") if metrics else None
                course.next_look = time.monotonic() + _LOSS_SECONDS
            self._progress.on_step(report.run_id, report.step, course.shown_loss)
        self._tell_of_restart(course, report.restarted)
        if report.ended:
            self._conclude(course, self._executor.collect(report.run_id))

    def _tell_of_restart(self, course: _Course, reason: str | None) -> None:
        """Note and say, once an attempt, why it did not go on from the newest checkpoint."""
        if reason is not None and reason != course.told:
            course.told = reason
            self._log("restarted", run_id=course.run.run_id, reason=reason)
            self._progress.on_restart(course.run, reason)

    def _conclude(self, course: _Course, attempts: Sequence[Attempt]) -> None:
        """Note the end of attempts, and decide what becomes of the run."""
        run_id = course.run.run_id
        folder = self._folder.run(run_id)
        assignment = self._running.pop(run_id)
        for attempt in attempts:
            self._log(
                "end",
                run_id=run_id,
                attempt=attempt.number,
                slots=list(attempt.slots),
                outcome=attempt.outcome,
                reason=attempt.reason,
                seconds=attempt.seconds,
            )
            self._tell_of_restart(course, attempt.restarted)
            course.told = None
            self._progress.on_attempt_end(course.run, attempt)
        self._scheduler.note_end(assignment, attempts)
        self._measured += attempts
        self._lease.check()
        record = folder.read_record()  # a job of a cluster writes its own
        course.attempts = read_attempts(folder)
        outcome = newest_outcome(folder)
        if record is not None:
            del self._courses[run_id]
            self._let_go(course.run)
            self._progress.on_end(record)
        elif outcome is not None:
            del self._courses[run_id]
            self._record(course.run, self._recorder.measured(course.run, outcome, course.attempts))
        elif attempts and is_storage_failure(attempts[-1].reason):
            raise SweepFolderError(
                f"{self._folder.path}: {attempts[-1].reason}; what was written is kept; make room and start again"
            )
        else:
            course.verdict = self._decide(course.ways, course.attempts)
            self._finish_if_over(course)

    def _decide(self, ways: Ways, attempts: Sequence[Attempt]) -> Verdict:
        """What becomes of a run; attempts from before a `retry` do not count."""
        forgiven = forgiven_attempts(self._folder.run(ways.run_id))
        return decide(ways, [attempt for attempt in attempts if attempt.number > forgiven], self._max_attempts)

    def _finish_if_over(self, course: _Course) -> None:
        verdict = course.verdict
        if verdict.status is not None:
            del self._courses[course.run.run_id]
            self._record(
                course.run, self._recorder.given_up(course.run, verdict.status, verdict.reason, course.attempts)
            )

    def _record(self, run: RunPlan, record: RunRecord) -> None:
        self._lease.check()
        self._folder.run(run.run_id).write_record(record)
        self._let_go(run)
        self._log("record", run_id=run.run_id, status=record.status, loss=record.loss)
        self._progress.on_end(record)

    def _stop(self) -> None:
        """Let everything that runs write a checkpoint and end.

        Raises:
            SweepStoppedError: Always.
        """
        received = self._signals.received
        assert received is not None
        self._log("stop", signal=received.name)
        began, insisted = time.monotonic(), False
        for run_id in self._running:
            self._executor.cancel(run_id, "checkpoint")
        while self._running:
            if self._signals.insisted and not insisted:
                insisted = True
                for run_id in self._running:
                    self._executor.cancel(run_id, "kill")
            for report in self._executor.poll(_TICK_SECONDS):
                self._hear(report)
        raise SweepStoppedError(
            f"{received.name}: stopped after {time.monotonic() - began:.0f} s of ending steps and writing checkpoints, "
            f"at {time.strftime('%H:%M:%S')}; {len(self._courses)} runs to go; the same command goes on from here",
            self._signals.exit_code,
        )

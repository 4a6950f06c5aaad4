"""An executor of its own: a sweep whose runs a function of yours trains, each in a thread, with retries and records."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from flopsfit_ds import build_plan
from flopsfit_ds.base.storage import write_json
from flopsfit_ds.engine.disk.attempts import Exits, close_attempt, open_attempt
from flopsfit_ds.engine.executor import Assignment, Ending, Report
from flopsfit_ds.engine.lifecycle import Crew, Lifecycle
from flopsfit_ds.engine.progress import Silence
from flopsfit_ds.engine.schedule.scheduler import Scheduler
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.engine.ways import fitting, ways_of
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import Attempt, Observed, RunRecord, SweepFolder
from flopsfit_ds.spec import validate_spec

Train = Callable[[RunPlan], float]
"""Trains a run as it is planned; its held-out loss in nats a token."""


class Running(NamedTuple):
    """An attempt in progress."""

    attempt: Attempt
    began: float
    future: Future[None]


class ThreadExecutor:
    """Carries out runs by calling a function in threads; an error of the function is a failed attempt."""

    def __init__(self, plan: SweepPlan, train: Train, num_threads: int) -> None:
        self._folder, self._train = SweepFolder(plan.folder), train
        self._runs = {run.run_id: run for run in plan.runs}
        self._pool = ThreadPoolExecutor(num_threads)
        self._running: dict[str, Running] = {}

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Note each attempt in the run's folder, then start it."""
        for assignment in assignments:
            attempt = open_attempt(self._folder.run(assignment.run_id), assignment)
            future = self._pool.submit(self._carry_out, self._runs[assignment.run_id], attempt)
            self._running[assignment.run_id] = Running(attempt, time.monotonic(), future)

    def _carry_out(self, run: RunPlan, attempt: Attempt) -> None:
        """In a thread: what a worker does at its end is to write what it found."""
        began = time.monotonic()
        loss = self._train(run)
        is_finite, seconds = math.isfinite(loss), time.monotonic() - began
        unknown = ("peak_memory_bytes", "peak_host_memory_bytes", "model_flops_utilisation", "train_loss")
        observed = Observed(
            num_params_total=run.num_params_total,
            num_params_trainable=run.num_params_trainable,
            num_tokens=run.num_tokens,
            flops=run.flops,
            peak_memory_bytes=None,
            peak_host_memory_bytes=None,
            seconds=seconds,
            tokens_per_second=run.num_tokens / seconds,
            model_flops_utilisation=None,
            zero_stage=attempt.zero_stage,
            world_size=attempt.world_size,
            skipped_steps=0,
            train_loss=None,
            missing=dict.fromkeys(unknown, "the thread does not measure it"),
        )
        outcome = {
            "status": "completed" if is_finite else "diverged",
            "reason": None if is_finite else f"the held-out loss is {loss}",
            "loss": loss if is_finite else None,
            "loss_standard_error": None,
            "loss_tokens": run.heldout_tokens,
            "start_step": 0,
            "unique_tokens": run.unique_tokens,
            "observed": asdict(observed),
        }
        write_json(self._folder.run(run.run_id).attempt(attempt.number) / "outcome.json", outcome)

    def poll(self, timeout_seconds: float) -> list[Report]:
        """Wait for a thread to end, at most so long."""
        wait([running.future for running in self._running.values()], timeout_seconds, FIRST_COMPLETED)
        return [Report(run_id, ended=True) for run_id, running in self._running.items() if running.future.done()]

    def cancel(self, run_id: str, how: Ending) -> None:
        """A thread cannot be ended: only what has not begun is given up."""
        self._running[run_id].future.cancel()

    def collect(self, run_id: str) -> tuple[Attempt, ...]:
        """Judge an attempt that has ended, and note it: by what it wrote, else by its error."""
        running = self._running.pop(run_id)
        if running.future.cancelled():
            exits = Exits({}, "it was given up before it began", "interrupted", None)
        else:
            error = running.future.exception()
            exits = Exits({}, f"{type(error).__name__}: {error}", "failed", None)
        seconds = time.monotonic() - running.began
        return (close_attempt(self._folder.run(run_id), running.attempt, exits, seconds),)

    def close(self, exit_code: int) -> None:
        """Wait for the threads that run; start no more."""
        self._pool.shutdown(cancel_futures=True)


class Threads(NamedTuple):
    """The ground that runs are carried out on: who may start them, and with what crew."""

    train: Train
    num_threads: int

    def claim(self, plan: SweepPlan, folder: SweepFolder) -> AbstractContextManager[tuple[()]]:
        """The lease of the sweep is right enough: nobody else starts threads here."""
        return nullcontext(())

    def at_work(self, plan: SweepPlan, folder: SweepFolder) -> Collection[str]:
        """None: threads end with their driver."""
        return ()

    def must_open(self) -> bool:
        """With nothing to do, no threads are needed."""
        return False

    @contextmanager
    def crew(self, plan: SweepPlan, runs: Sequence[RunPlan]) -> Iterator[Crew]:
        """Threads, and a slot for each that the scheduler fills."""
        slots = [Slot(0, number, None, str(number)) for number in range(self.num_threads)]
        executor = ThreadExecutor(plan, self.train, self.num_threads)
        try:
            yield Crew(executor, Scheduler(slots), lambda run: fitting(ways_of(run), self.num_threads))
        finally:
            executor.close(exit_code=0)


def sweep(plan: SweepPlan, train: Train, num_threads: int = 2) -> tuple[RunRecord, ...]:
    """Train all of a plan that has no record yet."""
    with Signals() as signals:
        return Lifecycle(Threads(train, num_threads), signals, Silence()).lead(plan)


SPEC = {
    "name": "threads",
    "data": {"heldout_tokens": 8192},
    "model": {"context_length": 128},
    "design": {"compute_budgets": [1e14, 1e15, 1e16], "sizes_per_budget": 5},
    "training": {"global_batch_tokens": 1024, "precision": "fp32"},
    "hardware": {"device": "cpu", "gpus_per_node": 2},
}


def plan(folder: Path) -> SweepPlan:
    """Three budgets of five sizes each."""
    return replace(build_plan(validate_spec(SPEC, "threads")), folder=folder)


def pretend(run: RunPlan) -> float:
    """In the place of your trainer: the loss that a known law gives."""
    return 1.8 + 480.0 * run.num_params_total**-0.35 + 2080.0 * run.num_tokens**-0.37


if __name__ == "__main__":
    for record in sweep(plan(Path(sys.argv[1])), pretend):
        print(record.label, f"{record.loss:.3f}", len(record.attempts))

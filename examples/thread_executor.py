"""An executor of its own: every run is a call of a function in a thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from flopsfit_ds.engine.executor import Assignment, Ending, Executor, Report
from flopsfit_ds.records import Attempt


class ThreadExecutor:
    """Carries out runs by calling `work(assignment)`; an error of the function is a failed attempt."""

    def __init__(self, work: Callable[[Assignment], None], num_threads: int) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(num_threads)
        self._running: dict[str, tuple[Assignment, float, Future[None]]] = {}

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Start attempts."""
        for assignment in assignments:
            future = self._pool.submit(self._work, assignment)
            self._running[assignment.run_id] = (assignment, time.time(), future)

    def poll(self, timeout_seconds: float) -> list[Report]:
        """Runs that have ended."""
        wait([future for _, _, future in self._running.values()], timeout_seconds, FIRST_COMPLETED)
        return [Report(run_id, ended=True) for run_id, (_, _, future) in self._running.items() if future.done()]

    def cancel(self, run_id: str, how: Ending) -> None:
        """A thread cannot be ended: only what has not begun is given up."""
        self._running[run_id][2].cancel()

    def collect(self, run_id: str) -> tuple[Attempt, ...]:
        """The attempt of a run that has ended."""
        assignment, started_at, future = self._running.pop(run_id)
        error = None if future.cancelled() else future.exception()
        outcome = "interrupted" if future.cancelled() else "completed" if error is None else "failed"
        strategy = assignment.layout.strategy
        attempt = Attempt(
            number=1,
            outcome=outcome,
            reason=None if error is None else f"{type(error).__name__}: {error}",
            slots=tuple(slot.name for slot in assignment.slots),
            zero_stage=strategy.zero_stage,
            world_size=strategy.num_gpus,
            micro_batch_size_per_gpu=strategy.micro_batch_size_per_gpu,
            gradient_accumulation_steps=assignment.layout.gradient_accumulation_steps,
            start_step=0,
            started_at=started_at,
            seconds=time.time() - started_at,
        )
        return (attempt,)

    def close(self, exit_code: int) -> None:
        """Wait for the threads that run; start no more."""
        self._pool.shutdown(cancel_futures=True)


def carry_out(executor: Executor, assignments: Sequence[Assignment]) -> dict[str, Attempt]:
    """What the driver does with an executor, without its scheduling: submit, poll, collect, close."""
    executor.submit(assignments)
    ended: dict[str, Attempt] = {}
    while len(ended) < len(assignments):
        for report in executor.poll(timeout_seconds=5.0):
            if report.ended:
                ended[report.run_id] = executor.collect(report.run_id)[-1]
    executor.close(exit_code=0)
    return ended

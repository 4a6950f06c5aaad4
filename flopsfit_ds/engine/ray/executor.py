"""The Ray executor: each run a placement group; what Ray takes away is asked for again and goes on from checkpoints."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.engine.disk.attempts import (
    Exits,
    close_attempt,
    open_attempt,
    read_attempts,
    settle_open_attempts,
)
from flopsfit_ds.engine.executor import Assignment, Ending, Report
from flopsfit_ds.engine.ray.head import Head, HeadLostError
from flopsfit_ds.engine.ray.node import FolderNotSharedError, NodeActor, Task
from flopsfit_ds.engine.ray.resources import Group
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slurm.job import Bin
from flopsfit_ds.records import Attempt, SweepFolder

_LOOK_SECONDS = 2.0
"""Between two looks at how far runs are: their files may lie on a network file system."""
_MAX_GROUPS = 64
"""That wait or run at once: enough for an autoscaler to see what is wanted; Ray plans each anew at every change."""
_MAX_FUTILE = 5
"""Losses of a run, one after another, in none of which it got further, that are nobody's fault; the next is its own."""
_REASON_CHARACTERS = 400


@dataclass
class _Live:
    """A run that Ray has.

    Attributes:
        assignment: The run.
        group: What was asked for.
        placement: Ray's own group.
        actors: One a node.
        pending: What each returns.
        attempts_before: Number of the run's last attempt when it was asked for.
    """

    assignment: Assignment
    group: Group
    placement: Any
    actors: list[Any]
    pending: list[Any]
    attempts_before: int


@dataclass(frozen=True)
class _End:
    """How a run's time in the cluster ended.

    Attributes:
        reason: What went wrong; None where nothing did.
        is_innocent: Whether that was the cluster's doing.
    """

    reason: str | None = None
    is_innocent: bool = True


class RayExecutor:
    """Runs in placement groups of a Ray cluster."""

    def __init__(
        self,
        folder: SweepFolder,
        group_of: Callable[[str], Group],
        work_of: Callable[[Group], Bin],
        signals: Signals,
    ) -> None:
        """Take charge; Ray is connected to already.

        Args:
            folder: The sweep's folder, on a file system that the cluster's nodes share.
            group_of: What to ask for, by run.
            work_of: What its nodes do; picklable.
            signals: Whose arrival ends a wait.
        """
        self._folder = folder
        self._group_of = group_of
        self._work_of = work_of
        self._signals = signals
        self._queue: dict[str, Assignment] = {}
        self._live: dict[str, _Live] = {}
        self._ended: dict[str, _End] = {}
        self._told: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self._futile: dict[str, int] = {}
        self._tries = 0
        self._last_look = 0.0
        self._session = f"{time.time():.0f}"
        self._head = Head()

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """See `Executor`."""
        self._queue |= {assignment.run_id: assignment for assignment in assignments}
        self._ask_for_queue()

    def _ask_for_queue(self) -> None:
        for run_id, assignment in list(self._queue.items())[: _MAX_GROUPS - len(self._live)]:
            del self._queue[run_id]
            self._live[run_id] = self._ask(assignment)

    def _ask(self, assignment: Assignment) -> _Live:
        ray: Any = importlib.import_module("ray")
        from ray.util.placement_group import placement_group  # pyright: ignore[reportMissingImports]
        from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
            PlacementGroupSchedulingStrategy,
        )

        group = self._group_of(assignment.run_id)
        self._tries += 1
        name = f"{assignment.run_id}.{self._session}.{self._tries}"
        task = Task.pack(self._work_of(group))
        placement = placement_group(list(group.bundles), strategy=group.strategy, name=name)
        actor_class: Any = ray.remote(NodeActor)
        actors = [
            actor_class.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                memory=bundle["memory"],
                max_concurrency=2,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=number),
            ).remote()
            for number, bundle in enumerate(group.bundles)
        ]
        pending = [actor.carry_out.remote(task, node, len(actors), name) for node, actor in enumerate(actors)]
        before = max(self._folder.run(assignment.run_id).attempt_numbers(), default=0)
        return _Live(assignment, group, placement, actors, pending, before)

    def poll(self, timeout_seconds: float) -> list[Report]:
        """See `Executor`.

        Raises:
            HeadLostError: The cluster's head does not answer.
            FolderNotSharedError: A node does not see the sweep's folder.
        """
        from ray.exceptions import RaySystemError  # pyright: ignore[reportMissingImports]

        if not self._ended:
            self._signals.wait(timeout_seconds)
        self._head.check()
        try:
            for run_id, live in list(self._live.items()):
                if run_id not in self._ended:
                    self._look_at(run_id, live)
        except (RaySystemError, ConnectionError) as error:
            self._head.is_lost = True
            raise HeadLostError(
                f"Ray's head is lost: {error}; started again, the sweep goes on from its checkpoints"
            ) from None
        self._ask_for_queue()
        reports = [Report(run_id, ended=True) for run_id in self._ended]
        if time.monotonic() - self._last_look >= _LOOK_SECONDS:
            self._last_look = time.monotonic()
            reports += [self._progress_of(run_id) for run_id in self._live if run_id not in self._ended]
        return reports

    def _progress_of(self, run_id: str) -> Report:
        metrics = self._folder.run(run_id).metrics.last()
        return Report(run_id, ended=False, step=metrics["step"] if metrics else None)

    def _look_at(self, run_id: str, live: _Live) -> None:
        """Note whether a run has ended: its first node returns last, unless one is lost."""
        ray: Any = importlib.import_module("ray")
        from ray.exceptions import RayActorError, RayTaskError  # pyright: ignore[reportMissingImports]

        done, _ = ray.wait(live.pending, num_returns=len(live.pending), timeout=0)
        for each in done:
            try:
                ray.get(each)
            except RayActorError as error:
                self._ended[run_id] = _End(f"Ray lost a node of it: {str(error).strip()[:_REASON_CHARACTERS]}")
                return
            except RayTaskError as error:
                if isinstance(error.cause, FolderNotSharedError):
                    raise FolderNotSharedError(str(error.cause)) from None
                reason = f"{type(error.cause).__name__}: {str(error.cause)[-_REASON_CHARACTERS:]}"
                # the lease of a node that was lost may be held for a moment longer
                self._ended[run_id] = _End(reason, isinstance(error.cause, SweepFolderError))
                return
        if live.pending[0] in done:
            self._ended[run_id] = _End()

    def cancel(self, run_id: str, how: Ending) -> None:
        """See `Executor`."""
        ray: Any = importlib.import_module("ray")

        live = self._live.get(run_id)
        if live is None:  # not asked for yet
            self._ended[run_id] = _End()
            return
        waits = ray.util.placement_group_table(live.placement).get("state") != "CREATED"
        if how == "kill" or waits:
            self._ended.setdefault(run_id, _End("the sweep was stopped"))
            for actor in live.actors:
                ray.kill(actor)
        else:
            for actor in live.actors:
                actor.stop.remote()

    def collect(self, run_id: str) -> tuple[Attempt, ...]:
        """See `Executor`."""
        end = self._ended.pop(run_id)
        self._queue.pop(run_id, None)
        live = self._live.pop(run_id, None)
        if live is not None:
            self._free(live)
            if end.reason is not None:
                self._note_loss(run_id, live, end)
        attempts = read_attempts(self._folder.run(run_id))
        told = self._told.get(run_id, 0)
        self._told[run_id] = max((attempt.number for attempt in attempts), default=told)
        return tuple(attempt for attempt in attempts if attempt.number > told)

    def _free(self, live: _Live) -> None:
        ray: Any = importlib.import_module("ray")
        from ray.util.placement_group import remove_placement_group  # pyright: ignore[reportMissingImports]

        for actor in live.actors:
            ray.kill(actor)
        remove_placement_group(live.placement)

    def _note_loss(self, run_id: str, live: _Live, end: _End) -> None:
        """Close the attempt that was under way; what the cluster takes away is no failure of a run, up to a number."""
        folder = self._folder.run(run_id)
        metrics = folder.metrics.last()
        step = metrics["step"] if metrics else 0
        self._futile[run_id] = 0 if step > self._steps.get(run_id, 0) else self._futile.get(run_id, 0) + 1
        self._steps[run_id] = max(step, self._steps.get(run_id, 0))
        is_lost = end.is_innocent and self._futile[run_id] < _MAX_FUTILE
        exits = Exits({}, end.reason, "interrupted" if is_lost else "killed", None)
        begun = max(folder.attempt_numbers(), default=0) > live.attempts_before
        if not settle_open_attempts(folder, exits) and not (begun or self._signals.stops):
            close_attempt(folder, open_attempt(folder, live.assignment), exits, 0.0)

    def close(self, exit_code: int) -> None:
        """See `Executor`; a head that is lost has nothing left to free."""
        for live in () if self._head.is_lost else self._live.values():
            self._free(live)
        self._live.clear()

"""What the engine needs to know of a run: the ways to carry it out, and what to try after a failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.plan.layouts import Layout
from flopsfit_ds.plan.sweep_plan import RunPlan
from flopsfit_ds.records import Attempt

FAILURES = ("failed", "hung", "killed")
"""Outcomes of attempts that count against a run."""


@dataclass(frozen=True)
class Ways:
    """A run, the ways to carry it out, and what to try after a failure.

    Attributes:
        run_id: The run.
        label: For people.
        num_steps: Optimiser steps.
        layouts: The best way for each number of slots that holds the run, fewest first.
        planned: The layout that the plan chose; one of `layouts`.
        reductions: What to try after an out-of-memory on the planned number of slots, in this order; empty where the
            plan knows nothing, or chose another number.
        points_per_slot: How many such runs may share a slot.
        keeps_layout: GPUs, micro-batch and accumulation change its loss, and stay.
        known_times: What its layouts take, over what the model that ranks them says; None where it is not known.
    """

    run_id: str
    label: str
    num_steps: int
    layouts: tuple[Layout, ...]
    planned: Layout
    reductions: tuple[Layout, ...]
    points_per_slot: int
    keeps_layout: bool = False
    known_times: float | None = None

    def seconds(self, layout: Layout) -> float:
        """How long all of the run should take in a layout; on a CPU in proportion to others only."""
        return layout.predicted_step_seconds * self.num_steps

    def expected_seconds(self, layout: Layout) -> float | None:
        """How long it takes in a layout; None where that is not known."""
        return None if self.known_times is None else self.known_times * self.seconds(layout)

    def reduced(self, layout: Layout) -> tuple[Layout, ...]:
        """What to try after an out-of-memory on the same slots: the plan's fallbacks, or halved micro-batches."""
        if layout.num_slots == self.planned.num_slots and self.reductions:
            return self.reductions
        if self.keeps_layout:
            return ()
        halved = []
        while layout.strategy.micro_batch_size_per_gpu % 2 == 0:
            micro_batch = layout.strategy.micro_batch_size_per_gpu // 2
            layout = replace(
                layout,
                strategy=replace(layout.strategy, micro_batch_size_per_gpu=micro_batch),
                gradient_accumulation_steps=layout.gradient_accumulation_steps * 2,
            )
            halved.append(layout)
        return tuple(halved)


@dataclass(frozen=True)
class Verdict:
    """What becomes of a run after its attempts so far.

    Attributes:
        layouts: Ways to try it; empty if it is over.
        status: How it ended, if it is over and never measured a loss.
        reason: Why.
        avoid: Names of slots on which it failed since it last got further.
        spare: Ways to take where the slots that there are hold none of `layouts`.
    """

    layouts: tuple[Layout, ...]
    status: Literal["oom", "failed"] | None = None
    reason: str | None = None
    avoid: frozenset[str] = frozenset()
    spare: tuple[Layout, ...] = ()


def ways_of(run: RunPlan) -> Ways:
    """The ways that a plan leaves to carry out a run."""
    placement, planned, seconds = run.placement, run.placement.layout, run.placement.predicted_seconds
    others = (each for each in placement.alternatives if each.num_slots != planned.num_slots)
    return Ways(
        run_id=run.run_id,
        label=run.label,
        num_steps=run.num_steps,
        layouts=tuple(sorted((planned, *others), key=lambda each: each.num_slots)),
        planned=planned,
        reductions=placement.fallbacks,
        points_per_slot=placement.points_per_gpu,
        keeps_layout=bool(run.layout_held),
        known_times=None if seconds is None else seconds / (planned.predicted_step_seconds * run.num_steps),
    )


def fitting(ways: Ways, num_slots: int) -> Ways:
    """A run with only those layouts that so many slots hold.

    Raises:
        LaunchError: There is none.
    """
    layouts = tuple(layout for layout in ways.layouts if layout.num_slots <= num_slots)
    if not layouts:
        least = min(layout.num_slots for layout in ways.layouts)
        raise LaunchError(
            f"{ways.label} needs {least} slots or more and there are {num_slots}; start more ranks, give more --slots, "
            "or plan for this machine (hardware.gpus_per_node)"
        )
    planned = ways.planned if ways.planned in layouts else layouts[-1]
    reductions = ways.reductions if planned is ways.planned else ()
    return replace(ways, layouts=layouts, planned=planned, reductions=reductions)


def decide(ways: Ways, attempts: Sequence[Attempt], max_attempts: int) -> Verdict:
    """Whether, and how, a run without a measured loss is tried again.

    Failures count against `max_attempts` only since the run last got further: a run that loses a worker every hour but
    keeps its checkpoints is not given up, one that never starts again after a resume is. What the program does wrong
    twice at one place it would do a third time. Preemptions and interruptions never count. After an out-of-memory the
    same slots are tried with less memory, then more slots.
    """
    stuck = [attempt for attempt in _since_progress(attempts) if attempt.outcome in FAILURES]
    if len(stuck) >= max_attempts:
        return Verdict((), "failed", f"{len(stuck)} attempts failed; the last: {stuck[-1].reason}")
    if len(stuck) > 1 and stuck[-1].fault is not None and stuck[-1].fault == stuck[-2].fault:
        return Verdict((), "failed", f"2 attempts failed alike, at one place of the program: {stuck[-1].reason}")
    avoid = frozenset(slot for attempt in stuck for slot in attempt.slots)
    too_large = [attempt.world_size for attempt in attempts if attempt.outcome == "oom"]
    if not too_large:
        return Verdict(_same_number_first(ways, attempts), avoid=avoid, spare=ways.layouts)
    options = {}
    for layout in ways.layouts:
        ladder = (layout, *ways.reduced(layout))[too_large.count(layout.num_slots) :]
        if ladder:
            options[layout.num_slots] = ladder[0]
    if too_large[-1] in options:
        return Verdict((options[too_large[-1]],), avoid=avoid)
    larger = tuple(layout for slots, layout in options.items() if slots > max(too_large))
    if larger:
        return Verdict(larger, avoid=avoid)
    last = next(attempt for attempt in reversed(attempts) if attempt.outcome == "oom")
    return Verdict((), "oom", f"out of memory in {len(too_large)} layouts; the last: {last.reason}")


def _since_progress(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    """Attempts from the first on that began as far as any did; one that ended before it knew its step began nowhere."""
    steps = [attempt.start_step or 0 for attempt in attempts]
    return attempts[steps.index(max(steps)) :] if steps else ()


def _same_number_first(ways: Ways, attempts: Sequence[Attempt]) -> tuple[Layout, ...]:
    """A run that has a checkpoint goes on with as many ranks as wrote it."""
    if any(attempt.start_step for attempt in attempts):
        same = tuple(layout for layout in ways.layouts if layout.num_slots == attempts[-1].world_size)
        return same or ways.layouts
    return ways.layouts

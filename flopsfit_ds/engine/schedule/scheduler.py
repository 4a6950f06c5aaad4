"""Which run starts next, where, and on how many slots: a packing, followed until measured times say otherwise."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flopsfit_ds.engine.executor import Assignment
from flopsfit_ds.engine.schedule.free_slots import FreeSlots, Use
from flopsfit_ds.engine.schedule.suspects import Suspects
from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.engine.ways import FAILURES
from flopsfit_ds.plan.layouts import Layout
from flopsfit_ds.plan.packing.search import Allotment, Packing, lower_bound, pack
from flopsfit_ds.records import Attempt

_TRUSTED_FRACTION = 0.05
"""Of a run's steps, after which its own pace says when it ends."""
_SOON = 0.001
"""What runs may end at any moment, and its slots do not count as free before."""
_SHARE_OF_RUNS = 0.05
"""Of the waiting runs that must have ended before the schedule is searched again."""
_START_SECONDS = 1.0
"""From the decision to the first step and from the last to the exit, until measured."""
_PRIOR_SECONDS = 30.0
"""How much measured time outweighs the plan's own predictions."""


@dataclass(frozen=True)
class Waiting:
    """A run that is to be tried.

    Attributes:
        run_id: The run.
        layouts: Ways to carry it out, at most one a number of slots.
        num_steps: Optimiser steps of the whole run.
        points_per_slot: How many such runs may share one slot.
        avoid: Names of slots that it should not get again, as long as others hold it.
        spare: Ways to take where the slots that there are hold none of `layouts`.
    """

    run_id: str
    layouts: tuple[Layout, ...]
    num_steps: int
    points_per_slot: int = 1
    avoid: frozenset[str] = frozenset()
    spare: tuple[Layout, ...] = ()

    def seconds(self, layout: Layout) -> float:
        """How long all of the run should take in a layout, as planned, start not included."""
        return layout.predicted_step_seconds * self.num_steps


@dataclass
class _Run:
    """A run in progress."""

    assignment: Assignment
    planned_seconds: float
    lanes: int
    began: float
    expected_seconds: float
    fraction: float = 0.0

    def remaining(self, now: float) -> float:
        """Seconds until it is expected to end; always more than 0."""
        elapsed = now - self.began
        if self.fraction > _TRUSTED_FRACTION:
            return max(_SOON, elapsed / self.fraction - elapsed)
        return max(_SOON, self.expected_seconds - elapsed)


class Predictions:
    """The plan's times, corrected by measured ones: one factor for each number of slots, and one for all."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float]] = {}

    def note(self, num_slots: int, planned_seconds: float, seconds: float) -> None:
        """A whole run on so many slots, planned to take so long, took so long."""
        predicted, measured = self._sums.get(num_slots, (0.0, 0.0))
        self._sums[num_slots] = (predicted + planned_seconds + _START_SECONDS, measured + seconds)

    def seconds(self, num_slots: int, planned_seconds: float) -> float:
        """How long a whole run on so many slots should take, start included."""
        factor = self._factor(list(self._sums.values()), 1.0)
        if num_slots in self._sums:
            factor = self._factor([self._sums[num_slots]], factor)
        return factor * (planned_seconds + _START_SECONDS)

    @staticmethod
    def _factor(sums: list[tuple[float, float]], prior: float) -> float:
        predicted = sum(one for one, _ in sums)
        measured = sum(one for _, one in sums)
        return (measured + prior * _PRIOR_SECONDS) / (predicted + _PRIOR_SECONDS)


@dataclass(frozen=True)
class Forecast:
    """What a schedule should take, if all predictions hold.

    Attributes:
        makespan_seconds: Of the schedule that is aimed at.
        lower_bound_seconds: No schedule is shorter.
    """

    makespan_seconds: float
    lower_bound_seconds: float


class Chooser(Protocol):
    """Decides what starts next.

    Attributes:
        slots: Slots in service: all that do not look broken; none where a cluster's own scheduler has them.
    """

    slots: tuple[Slot, ...]

    def choose(self, waiting: Sequence[Waiting]) -> list[Assignment]:
        """Runs to start now; they count as started."""
        ...

    def forecast(self, waiting: Sequence[Waiting]) -> Forecast | None:
        """What the schedule that is followed from here should take; None where a cluster's own scheduler decides."""
        ...

    def note_step(self, run_id: str, fraction: float) -> None:
        """A run has done this share of its steps."""
        ...

    def note_end(self, assignment: Assignment, attempts: Sequence[Attempt]) -> None:
        """An assignment is over."""
        ...


class Scheduler:
    """Knows what runs where and how far it is; asked for what to start next.

    Attributes:
        slots: Slots in service. One that looks broken is set aside for as long as the others hold all runs.
    """

    def __init__(
        self, slots: Sequence[Slot], points_per_slot: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with all slots free.

        Args:
            slots: All slots.
            points_per_slot: How many small runs may share one.
            clock: Seconds; another one than the machine's for simulations.
        """
        self.slots = self._all_slots = tuple(slots)
        self._is_changed = False
        self._suspects = Suspects()
        self.predictions = Predictions()
        self._num_lanes = points_per_slot
        self._running: dict[str, _Run] = {}
        self._ranks: dict[str, int] = {}
        self._layouts: dict[str, int] = {}
        self._clock = clock
        self._num_ended = 0

    def choose(self, waiting: Sequence[Waiting]) -> list[Assignment]:
        """Runs to start now; they count as started."""
        now = self._clock()
        waiting = self._set_broken_aside(waiting)
        uses = [
            Use(tuple(slot for slot in run.assignment.slots if slot in self.slots), run.lanes, run.remaining(now))
            for run in self._running.values()
        ]
        free = FreeSlots(self.slots, self._num_lanes, uses)
        if not waiting or not free.has_room_now:
            return []
        self._search_if_due(waiting, uses)
        assignments = []
        for run in sorted(waiting, key=lambda each: self._ranks.get(each.run_id, -1)):
            if not (free.has_room_now or free.has_gaps):
                break
            assignment = self._place(run, free)
            if assignment is not None:
                assignments.append(assignment)
        for assignment in assignments:
            run, layout = next(each for each in waiting if each.run_id == assignment.run_id), assignment.layout
            self._running[assignment.run_id] = _Run(
                assignment, run.seconds(layout), self._lanes_of(run, layout), now, self._seconds(run, layout)
            )
        return assignments

    def change_slots(self, slots: Sequence[Slot]) -> None:
        """From now on these are all: a node was lost, or has come. Runs that they do not hold wait."""
        self.slots = self._all_slots = tuple(slots)
        self._is_changed = True
        self._ranks = {}

    def _held(self, waiting: Sequence[Waiting], slots: Sequence[Slot]) -> list[Waiting]:
        """Those runs that some slots hold, with the layouts in which they do."""
        before, after = (Counter(slot.node for slot in some) for some in (self._all_slots, slots))
        in_one_node = range(1, max(after.values(), default=0) + 1)
        across_nodes = range(max(before.values()) + 1, len(slots) + 1)

        def held(layouts: tuple[Layout, ...]) -> tuple[Layout, ...]:
            return tuple(each for each in layouts if each.num_slots in (*in_one_node, *across_nodes))

        return [replace(run, layouts=some) for run in waiting if (some := held(run.layouts) or held(run.spare))]

    def _set_broken_aside(self, waiting: Sequence[Waiting]) -> Sequence[Waiting]:
        """Decide which slots are in service; the runs, with those layouts that these hold."""
        if self._is_changed and waiting:
            waiting = self._held(waiting, self._all_slots)
        broken = self._suspects.broken
        if not waiting or (not broken and self.slots == self._all_slots):
            return waiting
        slots = tuple(slot for slot in self._all_slots if slot not in broken)
        held = self._held(waiting, slots)
        if len(held) < len(waiting):
            slots, held = self._all_slots, waiting
        if slots != self.slots:
            self.slots, self._ranks = slots, {}
        return held

    def _avoided(self, run: Waiting, layout: Layout) -> frozenset[Slot]:
        """Slots that a run should not get again; none where it would not fit into a node without them."""
        avoid = frozenset(slot for slot in self.slots if slot.name in run.avoid)
        left = Counter(slot.node for slot in self.slots if slot not in avoid)
        return avoid if max(left.values(), default=0) >= layout.num_slots else frozenset()

    def _place(self, run: Waiting, free: FreeSlots) -> Assignment | None:
        """Give a run its turn: slots now, slots later (nothing is started, but they are kept), or a gap."""
        layout = self._layout_of(run)
        seconds, lanes = self._seconds(run, layout), self._lanes_of(run, layout)
        avoid = self._avoided(run, layout) if run.avoid else frozenset()
        if free.has_room_now:
            claim = free.earliest(layout.num_slots, lanes, avoid)
            free.place(claim, lanes, seconds)
        else:
            claim = free.gap(layout.num_slots, seconds, avoid)
        return Assignment(run.run_id, layout, claim.slots) if claim is not None and claim.start <= 0 else None

    def _seconds(self, run: Waiting, layout: Layout) -> float:
        return self.predictions.seconds(layout.num_slots, run.seconds(layout))

    def _lanes_of(self, run: Waiting, layout: Layout) -> int:
        if layout.num_slots > 1:
            return self._num_lanes
        return -(-self._num_lanes // min(run.points_per_slot, self._num_lanes))

    def _search_if_due(self, waiting: Sequence[Waiting], uses: Sequence[Use]) -> None:
        """Search again when something was learnt: at the end of each run, or of every few where very many wait."""
        is_new = any(run.run_id not in self._ranks for run in waiting)
        if not is_new and self._num_ended <= len(waiting) * _SHARE_OF_RUNS:
            return
        self._search(waiting, uses)

    def _search(self, waiting: Sequence[Waiting], uses: Sequence[Use]) -> Packing:
        """Find the schedule to follow from now on, beginning with the one that was followed."""
        packing = self.pack(waiting, uses, self._incumbent(waiting) if self._ranks else None)
        self._ranks = {waiting[number].run_id: rank for rank, number in enumerate(packing.order)}
        self._layouts = {
            run.run_id: run.layouts[allotment].num_slots
            for run, allotment in zip(waiting, packing.allotments, strict=True)
        }
        self._num_ended = 0
        return packing

    def _incumbent(self, waiting: Sequence[Waiting]) -> Packing:
        """The schedule that is followed; runs that it does not know come first."""
        order = sorted(range(len(waiting)), key=lambda number: self._ranks.get(waiting[number].run_id, -1))
        allotments = (run.layouts.index(self._layout_of(run)) for run in waiting)
        return Packing(tuple(order), tuple(allotments), float("inf"))

    def _layout_of(self, run: Waiting) -> Layout:
        """The layout that the schedule gives a run, if it still has it."""
        return next((each for each in run.layouts if each.num_slots == self._layouts.get(run.run_id)), run.layouts[0])

    def pack(self, waiting: Sequence[Waiting], uses: Sequence[Use] = (), incumbent: Packing | None = None) -> Packing:
        """The best schedule that the search finds for these runs, behind what is in use; a short search from one."""
        nodes: dict[int, list[float]] = {}
        lanes: dict[Slot, list[float]] = {slot: [] for slot in self.slots}
        for use in uses:
            for slot in use.slots:
                lanes[slot] += [use.seconds] * use.lanes
        for slot, times in lanes.items():
            nodes.setdefault(slot.node, []).extend([*times, *[0.0] * (self._num_lanes - len(times))])
        sizes = [len(times) // self._num_lanes for times in nodes.values()]
        return pack(self._allotments(waiting), sizes, self._num_lanes, list(nodes.values()), incumbent)

    def forecast(self, waiting: Sequence[Waiting]) -> Forecast | None:
        """See `Chooser`; None where the slots that there are hold no run."""
        if self._is_changed:
            waiting = self._held(waiting, self._all_slots)
        if not waiting:
            return None
        return Forecast(self._search(waiting, ()).makespan_seconds, self.lower_bound(waiting))

    def lower_bound(self, waiting: Sequence[Waiting]) -> float:
        """No schedule of these runs is shorter, in seconds, if all predictions hold."""
        return lower_bound(self._allotments(waiting), len(self.slots), self._num_lanes)

    def _allotments(self, waiting: Sequence[Waiting]) -> list[list[Allotment]]:
        return [
            [
                Allotment(layout.num_slots, self._lanes_of(run, layout), self._seconds(run, layout))
                for layout in run.layouts
            ]
            for run in waiting
        ]

    def note_step(self, run_id: str, fraction: float) -> None:
        """A run has done this share of its steps."""
        run = self._running[run_id]
        run.fraction = fraction
        self._suspects.note_step(run.assignment.slots)

    def note_end(self, assignment: Assignment, attempts: Sequence[Attempt]) -> None:
        """An assignment is over; a run that was carried out whole teaches how long others take."""
        run = self._running.pop(assignment.run_id)
        attempt = attempts[-1]
        if attempt.outcome == "completed" and not attempt.start_step and run.lanes == self._num_lanes:
            self.predictions.note(assignment.layout.num_slots, run.planned_seconds, attempt.seconds)
        if attempt.outcome in FAILURES and not run.fraction:
            self._suspects.note_failure(assignment.run_id, assignment.slots)
        self._num_ended += 1

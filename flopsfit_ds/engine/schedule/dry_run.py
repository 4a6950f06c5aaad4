"""What a sweep on slots would do, without doing it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flopsfit_ds.engine.schedule.scheduler import Scheduler, Waiting
from flopsfit_ds.engine.slots import slots_of_this_node
from flopsfit_ds.engine.ways import Ways, fitting, ways_of
from flopsfit_ds.plan.sweep_plan import SweepPlan


@dataclass(frozen=True)
class ExpectedSchedule:
    """The schedule that is aimed at.

    Attributes:
        num_slots: Slots.
        starts: Label and layout of each run, the first to start first.
        makespan_seconds: When the last run should end; None where the time of a run is not known.
        lower_bound_seconds: No schedule is shorter; None as above.
    """

    num_slots: int
    starts: tuple[tuple[str, str], ...]
    makespan_seconds: float | None
    lower_bound_seconds: float | None


def expected_schedule(plan: SweepPlan, num_slots: int | None) -> ExpectedSchedule:
    """The schedule of all of a plan's runs on this machine's slots.

    Raises:
        LaunchError: The slots do not hold the plan.
    """
    slots = slots_of_this_node(plan.cluster, num_slots).slots("")
    ways = [_timed(fitting(ways_of(run), len(slots))) for run in plan.runs]
    waiting = [Waiting(each.run_id, each.layouts, each.num_steps, each.points_per_slot) for each in ways]
    scheduler = Scheduler(slots, plan.spec.placement.points_per_gpu)
    packing = scheduler.pack(waiting)
    starts = tuple(
        (ways[number].label, ways[number].layouts[packing.allotments[number]].strategy.label)
        for number in packing.order
    )
    if any(each.known_times is None for each in ways):
        return ExpectedSchedule(len(slots), starts, None, None)
    return ExpectedSchedule(len(slots), starts, packing.makespan_seconds, scheduler.lower_bound(waiting))


def _timed(ways: Ways) -> Ways:
    """With layouts that take what is known of them."""
    times = 1.0 if ways.known_times is None else ways.known_times
    layouts = (replace(each, predicted_step_seconds=times * each.predicted_step_seconds) for each in ways.layouts)
    return replace(ways, layouts=tuple(layouts))

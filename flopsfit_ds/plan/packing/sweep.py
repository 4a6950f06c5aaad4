"""How long a sweep takes on all of its devices, and which of its runs get more of them so that it does not wait.

A run is placed where it costs the fewest GPU-seconds, whatever the others need. Where one is so long that the sweep
would wait for it alone, with most devices idle, it takes more of them: at a worse use of each, and much sooner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.base.units import format_seconds
from flopsfit_ds.memory.closed_form import estimate_memory
from flopsfit_ds.plan.layouts import CLEARLY_FITS, Layout, Search
from flopsfit_ds.plan.packing.search import Allotment, list_schedule, lower_bound, shortest_target
from flopsfit_ds.plan.placement import Placement, compared_with_nearest

_WORTH_A_CHANGE = 1.1
"""Times shorter that the sweep must become: predicted times are not exact enough for less."""
_WAITING = 1.5
"""Times longer than all work spread evenly over the devices: a run of that length is waited for."""
_SHORT_SECONDS = 600.0
"""A sweep of less than this does not wait: what starting processes takes is no part of predicted times."""

_YEAR_SECONDS = 365.25 * 86400
"""What takes longer is a slip in a number or in the hardware more often than a wish: no lease of devices lasts so."""


@dataclass(frozen=True)
class Makespan:
    """When the last run of a sweep ends, counted from its start, if all predictions hold.

    Attributes:
        seconds: In a schedule of the planned layouts, each run as early as it can start.
        lower_bound_seconds: No schedule is shorter, in whatever layouts of the runs.
    """

    seconds: float
    lower_bound_seconds: float


def expected_makespan(
    placements: Sequence[Placement], seconds: Sequence[float], cluster: Cluster, points_per_gpu: int
) -> Makespan:
    """How long runs so placed take, side by side on all of a cluster, where each alone takes so many seconds."""
    allotments = [_allotments(*each, points_per_gpu) for each in zip(placements, seconds, strict=True)]
    free = [[0.0] * (cluster.gpus_per_node * points_per_gpu) for _ in range(cluster.num_nodes)]
    last = list_schedule([planned for planned, *_ in allotments], free, points_per_gpu)
    return Makespan(last, lower_bound(allotments, cluster.num_gpus, points_per_gpu))


def spread_long_runs(
    placements: Sequence[Placement],
    seconds: Sequence[float],
    searches: Sequence[Search],
    cluster: Cluster,
    points_per_gpu: int,
) -> list[Placement]:
    """The placements, with more GPUs for runs that the whole sweep would wait for.

    Args:
        placements: Of the runs of a sweep.
        seconds: Of each run so placed.
        searches: What placed each.
        cluster: The hardware.
        points_per_gpu: Runs that may share a GPU.
    """
    now = expected_makespan(placements, seconds, cluster, points_per_gpu)
    if now.seconds < max(_SHORT_SECONDS, _WORTH_A_CHANGE * now.lower_bound_seconds):
        return list(placements)
    allotments = [_allotments(*each, points_per_gpu) for each in zip(placements, seconds, strict=True)]
    free = [[0.0] * (cluster.gpus_per_node * points_per_gpu) for _ in range(cluster.num_nodes)]
    chosen, shortest = shortest_target(allotments, free, points_per_gpu, now.lower_bound_seconds, _WORTH_A_CHANGE)
    if now.seconds < _WORTH_A_CHANGE * shortest:
        return list(placements)
    return [
        placement if index == 0 else _widened(placement, alone, search, index)
        for placement, alone, search, index in zip(placements, seconds, searches, chosen, strict=True)
    ]


def narrow_batches(
    placements: Sequence[Placement],
    seconds: Sequence[float],
    searches: Sequence[Search],
    labels: Sequence[str],
    cluster: Cluster,
    now: Makespan,
) -> list[str]:
    """What to say of runs that a sweep waits for only because their batch divides over few GPUs.

    Args:
        placements: Of the runs.
        seconds: Of each run so placed.
        searches: What placed each.
        labels: Of each.
        cluster: The hardware.
        now: How long the sweep takes.
    """
    work = sum(alone * place.strategy.num_gpus for place, alone in zip(placements, seconds, strict=True))
    said: dict[tuple[int, int, int], list[str]] = {}
    for place, alone, search, label in zip(placements, seconds, searches, labels, strict=True):
        used, batch = place.strategy.num_gpus, search.global_batch
        better = search.wider_batch(used) if used == max(search.gpu_counts()) else None
        waits = alone > max(_SHORT_SECONDS, _WAITING * work / cluster.num_gpus)
        if better is not None and waits and alone > now.seconds / _WORTH_A_CHANGE:
            said.setdefault((batch, used, better), []).append(label)
    return [
        f"{', '.join(names[:3])}: {batch} sequences a step divide over no more than {used} of {cluster.num_gpus} GPUs, "
        f"and the sweep waits for that; a global batch of {better} sequences divides over more"
        for (batch, used, better), names in said.items()
    ]


def year_long(seconds: Mapping[str, float], now: Makespan, cluster: Cluster) -> list[str]:
    """What to say of a sweep that takes longer than a year, if all predictions hold.

    Args:
        seconds: Of each run on the devices that it is planned on, by its label.
        now: How long the sweep takes.
        cluster: The hardware; of a CPU the model that ranks layouts knows no more than that it takes years.
    """
    if now.seconds <= _YEAR_SECONDS:
        return []
    look = "see whether the budgets or tokens of design and hardware's devices are what is meant"
    if cluster.kind == "cpu":
        return [f"the sweep takes years on {cluster.num_gpus} CPU slots, roughly guessed; {look}"]
    longest = max(seconds, key=lambda label: seconds[label])
    alone = sum(each > _YEAR_SECONDS for each in seconds.values())
    runs = f"{alone} of {len(seconds)} runs longer than one by themselves" if alone else "no run so long by itself"
    return [
        f"the sweep takes {now.seconds / _YEAR_SECONDS:,.1f} years on these devices, {runs} (the longest, {longest}: "
        f"{seconds[longest] / _YEAR_SECONDS:,.1f}); {look}"
    ]


def _others(placement: Placement) -> list[Layout]:
    return [each for each in placement.alternatives if each.strategy.num_gpus != placement.strategy.num_gpus]


def _allotments(placement: Placement, seconds: float, points_per_gpu: int) -> list[Allotment]:
    """The layouts of a run as the search sees them, the planned one first."""
    steps = seconds / placement.predicted_step_seconds
    shared = -(-points_per_gpu // min(placement.points_per_gpu, points_per_gpu))
    planned = Allotment(placement.strategy.num_gpus, shared, seconds)
    others = [
        Allotment(each.strategy.num_gpus, shared, each.predicted_step_seconds * steps) for each in _others(placement)
    ]
    return [planned, *others]


def _widened(placement: Placement, alone: float, search: Search, index: int) -> Placement:
    layout = _others(placement)[index - 1]
    memory = estimate_memory(
        search.profile,
        layout.strategy,
        search.cluster,
        search.rules.memory_margin,
        layout.gradient_accumulation_steps,
    )
    ratio = layout.gpu_seconds / placement.layout.gpu_seconds
    limit = CLEARLY_FITS * search.cluster.device_memory_bytes if search.cluster.kind == "cuda" else float("inf")
    faster = layout.predicted_step_seconds / placement.predicted_step_seconds
    took = (f"it takes {format_seconds(alone)}, and ", format_seconds(alone * faster))
    if search.cluster.kind == "cpu":
        took = ("", f"it takes {faster:.2f} of the time")
    told = (
        f"{layout.strategy.label}: on {placement.strategy.num_gpus} {took[0]}the sweep would wait; here {took[1]}, at "
        f"{ratio:.2f} times the GPU-hours"
    )
    nearest = compared_with_nearest(search, layout)
    reason = f"{told}; {nearest}" if nearest else told
    wide = placement.moved_to(layout, memory, ())
    return replace(
        wide,
        reason=reason,
        # no simulation looks at another layout than the planned one, so that closed forms may leave no doubt of it
        alternatives=tuple(
            each for each in placement.alternatives if each == layout or each.device_total_bytes <= limit
        ),
        fallbacks=search.fallbacks(layout),
    )

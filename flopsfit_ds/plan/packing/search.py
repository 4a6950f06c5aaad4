"""In which order, and on how many slots each, runs are best carried out: a search over simulated schedules.

List scheduling with the longest run first is near the lower bound when there are many runs of one width. Two questions
are left: how many slots each run gets, and whether wide or long ones go first. Both are answered by trying: for a
series of target lengths each run takes its cheapest layout that is short enough (Turek, Wolf and Yu, 1992, choose
allotments so), every such choice is simulated in several orders, and the shortest schedule wins.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace

_TARGETS = 12
"""Target lengths that are tried..."""
_GROWTH = 1.12
"""...each so much longer than the last: from the lower bound to 3.5 times it."""
_GOOD_ENOUGH = 1.002
"""Over the lower bound: no predicted time is known to 0.2%."""
_CHANGE_ALLOTMENT = 0.2
"""Share of the other moves that give the run another number of slots as well. Chosen: where the search looks, not
what it accepts."""


@dataclass(frozen=True)
class _Effort:
    """When the local search ends.

    Attributes:
        placements: Runs that it has placed in all.
        moves: Moves that it has tried.
        moves_a_run: The same, for each run.
        patience: Moves that it has tried since it last gained.
    """

    placements: int
    moves: int
    moves_a_run: int
    patience: int


_FIRST = _Effort(placements=400_000, moves=5000, moves_a_run=5000, patience=1000)
"""At most half a second."""
_AGAIN = _Effort(placements=10_000, moves=5000, moves_a_run=50, patience=200)
"""From a schedule that was good a moment ago: some hundredths of a second."""


@dataclass(frozen=True)
class Allotment:
    """What a run takes of the slots in one of its layouts, and for how long: all that the search sees of it.

    Attributes:
        num_slots: Slots it takes.
        lanes: Share of a slot that it takes, in lanes.
        seconds: Expected time.
    """

    num_slots: int
    lanes: int
    seconds: float


@dataclass(frozen=True)
class Packing:
    """What the search found.

    Attributes:
        order: Index of each run, the first to start first.
        allotments: For each run, the index of its allotment among its own.
        makespan_seconds: When the last run ends in the simulation.
    """

    order: tuple[int, ...]
    allotments: tuple[int, ...]
    makespan_seconds: float


def lower_bound(runs: Sequence[Sequence[Allotment]], num_slots: int, num_lanes: int = 1) -> float:
    """No schedule is shorter, in seconds: the longest run, and all work spread evenly over the slots.

    In a schedule of length T each run has an allotment that takes at most T, so the work of the cheapest of these,
    over the slots, may not exceed T; with one allotment a run that is max(total work / slots, longest run).
    """
    if not runs:
        return 0.0
    longest = max(min(allotment.seconds for allotment in allotments) for allotments in runs)
    low = longest
    high = max(
        longest, sum(_work(allotments[_allot(allotments, longest, num_lanes)], num_lanes) for allotments in runs)
    )
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        work = sum(_work(each[_allot(each, middle, num_lanes)], num_lanes) for each in runs)
        low, high = (low, middle) if work / num_slots <= middle else (middle, high)
    return low


def _work(allotment: Allotment, num_lanes: int) -> float:
    return allotment.num_slots * allotment.seconds * allotment.lanes / num_lanes


def pack(
    runs: Sequence[Sequence[Allotment]],
    node_sizes: Sequence[int],
    num_lanes: int = 1,
    busy: Sequence[Sequence[float]] | None = None,
    incumbent: Packing | None = None,
) -> Packing:
    """Search for a short schedule.

    Args:
        runs: The allotments of each run; each needs no more slots than there are.
        node_sizes: Slots of each node.
        num_lanes: Equal shares that a slot can be divided into.
        busy: For each node, seconds until each of its lanes is free; without it, all are free.
        incumbent: Order and allotments that were good before some runs started or ended; the search is then short.
    """
    start = busy if busy is not None else [[0.0] * (size * num_lanes) for size in node_sizes]
    start = [sorted(lanes) for lanes in start]
    total = sum(node_sizes)
    waits = sum(sum(lanes) for lanes in start) / (total * num_lanes)
    bound = max(1e-9, lower_bound(runs, total, num_lanes) + waits)
    best = _first_guess(runs, start, num_lanes, bound)
    if incumbent is None:
        return _improve(best, runs, start, num_lanes, bound, _FIRST)
    makespan, _ = _simulate(_picked(runs, incumbent.allotments), incumbent.order, start, num_lanes)
    if makespan < best.makespan_seconds:
        best = replace(incumbent, makespan_seconds=makespan)
    return _improve(best, runs, start, num_lanes, bound, _AGAIN)


def list_schedule(
    allotments: Sequence[Allotment], free: Sequence[Sequence[float]], num_lanes: int = 1, limit: float = math.inf
) -> float:
    """When the last run ends, each in one allotment and started as early as it can, in the best of a few orders.

    Args:
        allotments: One a run.
        free: For each node, seconds until each of its lanes is free.
        num_lanes: Equal shares that a slot can be divided into.
        limit: A schedule that is longer is of no use: where all are, some length beyond it.
    """
    if not allotments:
        return 0.0
    shortest = math.inf
    for order in _orders(allotments, num_lanes):
        shortest = min(shortest, _simulate(allotments, order, free, num_lanes, min(limit, shortest))[0])
    return shortest


def shortest_target(
    runs: Sequence[Sequence[Allotment]],
    free: Sequence[Sequence[float]],
    num_lanes: int,
    bound: float,
    near_enough: float,
) -> tuple[tuple[int, ...], float]:
    """Allotments that keep each run's first one where it is short enough for the whole, and the length they come to.

    For a series of target lengths each run that is longer takes the cheapest allotment that is not; the shortest of
    these is improved by local search. Of all schedules whose length is within a factor of the shortest, the one is
    taken that changes the fewest runs.

    Args:
        runs: The allotments of each run, the preferred one first.
        free: As of `list_schedule`.
        num_lanes: Equal shares that a slot can be divided into.
        bound: No schedule is shorter, in seconds.
        near_enough: That factor.
    """
    found: list[tuple[int, float, tuple[int, ...]]] = []
    for exponent in range(_TARGETS):
        target = bound * _GROWTH**exponent
        chosen = tuple(0 if run[0].seconds <= target else _allot(run, target, num_lanes) for run in runs)
        if not found or chosen != found[-1][2]:
            seconds = list_schedule(_picked(runs, chosen), free, num_lanes)
            found.append((sum(index > 0 for index in chosen), seconds, chosen))
    _, seconds, chosen = min(found, key=lambda entry: entry[1])
    picked = _picked(runs, chosen)
    order = min(_orders(picked, num_lanes), key=lambda order: _simulate(picked, order, free, num_lanes)[0])
    found += _with_fewer_changes(
        _improve(Packing(order, chosen, seconds), runs, free, num_lanes, bound, _AGAIN).allotments,
        runs, free, num_lanes, near_enough,
    )  # fmt: skip
    shortest = min(seconds for _, seconds, _ in found)
    near = [entry for entry in found if entry[1] <= near_enough * shortest]
    _, seconds, chosen = min(near, key=lambda entry: (entry[0], _total_work(runs, entry[2], num_lanes), entry[1]))
    return chosen, seconds


def _total_work(runs: Sequence[Sequence[Allotment]], chosen: Sequence[int], num_lanes: int) -> float:
    return sum(_work(allotment, num_lanes) for allotment in _picked(runs, chosen))


def _with_fewer_changes(
    allotments: tuple[int, ...],
    runs: Sequence[Sequence[Allotment]],
    free: Sequence[Sequence[float]],
    num_lanes: int,
    near_enough: float,
) -> list[tuple[int, float, tuple[int, ...]]]:
    """A choice of allotments, and those nearer to the first ones, or cheaper, that keep it nearly as short."""
    chosen = list(allotments)
    shortest = list_schedule(_picked(runs, chosen), free, num_lanes)
    found = [(sum(index > 0 for index in chosen), shortest, tuple(chosen))]
    for number in sorted((n for n, index in enumerate(chosen) if index), key=lambda n: runs[n][0].seconds):
        now = chosen[number]
        costs = [_work(allotment, num_lanes) for allotment in runs[number]]
        cheaper = (index for index in range(1, len(costs)) if costs[index] < costs[now])
        for index in (0, *sorted(cheaper, key=lambda index: costs[index])):
            chosen[number] = index
            seconds = list_schedule(_picked(runs, chosen), free, num_lanes, near_enough * shortest)
            if seconds <= near_enough * shortest:
                found.append((sum(index > 0 for index in chosen), seconds, tuple(chosen)))
                break
        else:
            chosen[number] = now
    return found


def _first_guess(
    runs: Sequence[Sequence[Allotment]], start: Sequence[Sequence[float]], num_lanes: int, bound: float
) -> Packing:
    """The best of all choices of allotments for a target length, each in a few orders."""
    best: Packing | None = None
    tried: set[tuple[int, ...]] = set()
    for exponent in range(_TARGETS):
        chosen = tuple(_allot(allotments, bound * _GROWTH**exponent, num_lanes) for allotments in runs)
        if chosen in tried:
            continue
        tried.add(chosen)
        picked = [allotments[index] for allotments, index in zip(runs, chosen, strict=True)]
        for order in _orders(picked, num_lanes):
            makespan, _ = _simulate(picked, order, start, num_lanes)
            if best is None or makespan < best.makespan_seconds:
                best = Packing(order, chosen, makespan)
    assert best is not None
    return best


def _improve(
    best: Packing,
    runs: Sequence[Sequence[Allotment]],
    start: Sequence[Sequence[float]],
    num_lanes: int,
    bound: float,
    effort: _Effort,
) -> Packing:
    """Local search: the run that ends last comes earlier, or gets other slots; or any two change places.

    Where no run has a choice of slots the sorted order stays: it is as near the bound, and a schedule that was tuned to
    predicted times loses more when they are off than one that leaves short runs for the end (scripts/bench_engine.py).
    """
    if all(len(allotments) == 1 for allotments in runs):
        return best
    draw = random.Random(0)
    order, allotments = list(best.order), list(best.allotments)
    makespan, last = _simulate(_picked(runs, allotments), order, start, num_lanes)
    idle = 0
    for _ in range(min(effort.moves, effort.moves_a_run * len(runs), effort.placements // len(runs))):
        if makespan <= bound * _GOOD_ENOUGH or idle >= effort.patience:
            break
        new_order, new_allotments = order.copy(), allotments.copy()
        move = draw.randrange(3)
        target = last if move < 2 else draw.randrange(len(runs))
        if move == 1 or draw.random() < _CHANGE_ALLOTMENT:
            new_allotments[target] = draw.randrange(len(runs[target]))
        position = new_order.index(target)
        if move == 2:
            other = draw.randrange(len(runs))
            new_order[position], new_order[other] = new_order[other], new_order[position]
        elif position:
            new_order.insert(draw.randrange(position), new_order.pop(position))
        new_makespan, new_last = _simulate(_picked(runs, new_allotments), new_order, start, num_lanes, makespan)
        idle = 0 if new_makespan < makespan else idle + 1
        if new_makespan <= makespan:
            order, allotments, makespan, last = new_order, new_allotments, new_makespan, new_last
    return Packing(tuple(order), tuple(allotments), makespan)


def _picked(runs: Sequence[Sequence[Allotment]], allotments: Sequence[int]) -> list[Allotment]:
    return [run[allotment] for run, allotment in zip(runs, allotments, strict=True)]


def _allot(allotments: Sequence[Allotment], target: float, num_lanes: int) -> int:
    """The cheapest allotment that is short enough, else the quickest."""
    short = [index for index, allotment in enumerate(allotments) if allotment.seconds <= target]
    if short:
        return min(short, key=lambda index: _work(allotments[index], num_lanes))
    return min(range(len(allotments)), key=lambda index: allotments[index].seconds)


def _orders(allotments: Sequence[Allotment], num_lanes: int) -> list[tuple[int, ...]]:
    numbers = range(len(allotments))
    wide_first = sorted(numbers, key=lambda i: (-allotments[i].num_slots, -allotments[i].lanes, -allotments[i].seconds))
    long_first = sorted(numbers, key=lambda i: (-allotments[i].seconds, -allotments[i].num_slots))
    large_first = sorted(numbers, key=lambda i: -_work(allotments[i], num_lanes))
    return list(dict.fromkeys((tuple(wide_first), tuple(long_first), tuple(large_first))))


def _simulate(
    allotments: Sequence[Allotment],
    order: Sequence[int],
    busy: Sequence[Sequence[float]],
    num_lanes: int,
    limit: float = math.inf,
) -> tuple[float, int]:
    """Place runs in this order, each as early as it can start, gaps not filled: end and number of the last.

    What ends after the limit is of no use: there it stops, with an end that is beyond the limit too.
    """
    nodes = [list(lanes) for lanes in busy]
    wide_enough: dict[int, list[list[float]]] = {}
    end, last = 0.0, order[0]
    for number in order:
        allotment = allotments[number]
        lanes = allotment.num_slots * (allotment.lanes if allotment.num_slots == 1 else num_lanes)
        if lanes not in wide_enough:
            wide_enough[lanes] = [node for node in nodes if len(node) >= lanes]
        able = wide_enough[lanes]
        if able:
            starts = [node[lanes - 1] for node in able]
            finish = _take(able[starts.index(min(starts))], lanes, allotment.seconds)
        else:
            finish = _spread(nodes, lanes, allotment.seconds)
        if finish > end:
            end, last = finish, number
            if end > limit:
                break
    return end, last


def _take(node: list[float], lanes: int, seconds: float) -> float:
    """Occupy the lanes of a node that are free first; when the run ends."""
    finish = node[lanes - 1] + seconds
    del node[:lanes]
    if lanes == 1:
        insort(node, finish)
    else:
        position = bisect_left(node, finish)
        node[position:position] = [finish] * lanes
    return finish


def _spread(nodes: list[list[float]], lanes: int, seconds: float) -> float:
    """Occupy whole nodes for a run that is wider than any of them; when it ends."""
    chosen, count = [], 0
    for node in sorted(nodes, key=lambda node: node[-1]):
        chosen.append(node)
        count += len(node)
        if count >= lanes:
            break
    finish = max(node[-1] for node in chosen) + seconds
    for node in chosen:
        node[:] = [finish] * len(node)
    return finish

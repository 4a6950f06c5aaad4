"""What is asked of SLURM: jobs with the GPUs, memory and time that the plan predicts; small runs share a job."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.base.units import GIB
from flopsfit_ds.engine.slurm.memory import convert_bytes, load_bytes
from flopsfit_ds.engine.ways import Ways, ways_of
from flopsfit_ds.plan.layouts import Layout
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan

_SMALL_SECONDS = 600.0
"""Shorter runs share jobs..."""
_BIN_SECONDS = 1800.0
"""...of about this length."""
_TIME_FACTOR = 1.5
"""Over the predicted time, which only ranks layouts well: a job cut off must wait in the queue again, and one that asks
for more than it needs waits a little longer. Chosen, not measured."""
_START_SECONDS = 600.0
"""For loading, on a file system that everybody loads from."""
_PROCESS_BYTES = 2 * GIB
"""Host memory of one process with torch and DeepSpeed."""
_CPUS_PER_GPU = 4
"""For the rank, and what its libraries start beside it. Chosen, not measured."""


@dataclass(frozen=True)
class Submission:
    """One job.

    Attributes:
        name: For people.
        run_ids: Carried out one after another.
        labels: Theirs.
        nodes: Nodes.
        slots_per_node: Devices of each.
        gpus_per_node: The same for GPUs, 0 on a CPU.
        cpus_per_node: Cores.
        memory_bytes: Host memory of a node.
        minutes: Time limit; None where it is not known how long its runs take.
        layout: How its first run is laid out; all of them have this shape.
    """

    name: str
    run_ids: tuple[str, ...]
    labels: tuple[str, ...]
    nodes: int
    slots_per_node: int
    gpus_per_node: int
    cpus_per_node: int
    memory_bytes: int
    minutes: int | None
    layout: Layout


def plan_submissions(
    plan: SweepPlan, run_ids: Sequence[str] | None = None, max_minutes: int | None = None
) -> tuple[Submission, ...]:
    """The jobs of a sweep, or of some of its runs, the longest first.

    A run has the GPUs that the plan chose, or more where it would otherwise outlast the partition's time limit.

    Args:
        plan: The sweep.
        run_ids: Runs to be carried out; all of them without it.
        max_minutes: The partition's time limit; None for none.
    """
    wanted = None if run_ids is None else set(run_ids)
    runs_in_time = [_in_time(ways_of(run), max_minutes) for run in plan.runs if wanted is None or run.run_id in wanted]
    runs = {run.run_id: run for run in plan.runs}
    bins = _bins(sorted(runs_in_time, key=lambda ways: -ways.seconds(ways.planned)))
    return tuple(_submission(plan, members, runs) for members in bins)


def _in_time(ways: Ways, max_minutes: int | None) -> Ways:
    """The run in its planned layout, or in the smallest larger one that ends in time, or in the quickest.

    Where it is not known how long it takes, it stays as planned.
    """
    expected = ways.expected_seconds(ways.planned)
    if max_minutes is None or expected is None or _minutes(expected) <= max_minutes:
        return ways
    larger = [layout for layout in ways.layouts if layout.num_slots > ways.planned.num_slots]
    quickest = min((ways.planned, *larger), key=ways.seconds)
    for layout in larger:
        if _minutes(ways.expected_seconds(layout) or 0.0) <= max_minutes:
            return replace(ways, planned=layout)
    return replace(ways, planned=quickest)


def _minutes(seconds: float) -> int:
    return math.ceil((_TIME_FACTOR * seconds + _START_SECONDS) / 60)


def _bins(runs: Sequence[Ways]) -> list[list[Ways]]:
    """Long runs alone; short ones of one width together, filled up in turn."""
    bins: list[list[Ways]] = []
    open_bins: dict[int, list[Ways]] = {}
    for ways in runs:
        slots, seconds = ways.planned.num_slots, ways.seconds(ways.planned)
        current = open_bins.get(slots)
        if seconds >= _SMALL_SECONDS or current is None or _length(current) + seconds > _BIN_SECONDS:
            bins.append([ways])
            if seconds < _SMALL_SECONDS:
                open_bins[slots] = bins[-1]
        else:
            current.append(ways)
    return bins


def _length(members: Sequence[Ways]) -> float:
    return sum(ways.seconds(ways.planned) for ways in members)


def _limit(members: Sequence[Ways]) -> int | None:
    expected = [ways.expected_seconds(ways.planned) for ways in members]
    known = [each for each in expected if each is not None]
    return _minutes(sum(known)) if len(known) == len(expected) else None


def _submission(plan: SweepPlan, members: Sequence[Ways], runs: Mapping[str, RunPlan]) -> Submission:
    layout = members[0].planned
    nodes, per_node = _shape(layout, plan.cluster)
    is_gpu = plan.cluster.kind == "cuda"
    node_bytes = max(_node_bytes(runs[ways.run_id], ways, per_node, is_gpu) for ways in members)
    return Submission(
        name=f"{plan.name}-{members[0].label}" + (f"+{len(members) - 1}" if len(members) > 1 else ""),
        run_ids=tuple(ways.run_id for ways in members),
        labels=tuple(ways.label for ways in members),
        nodes=nodes,
        slots_per_node=per_node,
        gpus_per_node=per_node if is_gpu else 0,
        cpus_per_node=per_node * _CPUS_PER_GPU if is_gpu else per_node,
        memory_bytes=node_bytes + (per_node + 1) * _PROCESS_BYTES,
        minutes=_limit(members),
        layout=layout,
    )


def _node_bytes(run: RunPlan, ways: Ways, per_node: int, is_gpu: bool) -> int:
    """Host memory of a node for a run's states, in whatever layout of its slots it is carried out or was before."""
    possible = [
        ways.planned,
        *ways.reductions,
        *(each for each in ways.layouts if each.num_slots < ways.planned.num_slots),
    ]
    most = 0
    for layout in possible:
        resident = run.placement.memory.host_bytes + (0 if is_gpu else layout.device_total_bytes)
        ranks = min(per_node, layout.num_slots)
        most = max(
            most, ranks * (resident + load_bytes(layout.strategy, run.num_params_total, run.num_params_trainable))
        )
    if len({(layout.strategy.zero_stage, layout.num_slots) for layout in possible}) > 1:
        converted = (
            convert_bytes(layout.strategy, run.num_params_total, run.num_params_trainable) for layout in possible
        )
        most = max(most, *converted)
    return most


def _shape(layout: Layout, cluster: Cluster) -> tuple[int, int]:
    """Nodes, and slots of each; as many on each node as on the others."""
    nodes = math.ceil(layout.num_slots / cluster.gpus_per_node)
    return nodes, math.ceil(layout.num_slots / nodes)

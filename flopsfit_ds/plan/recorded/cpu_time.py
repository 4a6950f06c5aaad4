"""How long runs take on this machine's CPU, by runs that it has trained: the plan's own guess was three times off.

What a run took is kept in the user's cache folder when a sweep ends, by machine, versions and kind of model, and read
back, without torch, when a plan is made. Where there is nothing to go by, a plan has no time. Layouts are ranked by the
model alone, so that what is trained where does not depend on what this machine has trained before.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.base.storage import atomic_write, user_cache_folder
from flopsfit_ds.records import RunRecord

if TYPE_CHECKING:
    from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan

_MOST_KEPT = 60
"""Runs, the newest: several sweeps of the quickstart's kind."""
_LEAST = 3
"""Runs: two numbers are fitted."""
_REACH = 4.0
"""Times the FLOPs of a step that were measured: within this cores are used about alike."""
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class _Took:
    """One run as it was, in seconds of one slot.

    Attributes:
        blocks: That a step passes: blocks of the model times micro-batches.
        flops: Of a step.
        step_seconds: Of training.
        other_seconds: From the decision to run it to its end, without the training loop: start and evaluation.
    """

    blocks: float
    flops: float
    step_seconds: float
    other_seconds: float


@dataclass(frozen=True)
class CpuPace:
    """What runs take on this machine.

    Attributes:
        block_seconds: Of a block in a micro-batch, however small.
        flops_per_second: Beyond it.
        other_seconds: Of a run's start and evaluation.
        num_runs: That were measured.
        flops: Fewest and most of a step among them.
    """

    block_seconds: float
    flops_per_second: float
    other_seconds: float
    num_runs: int
    flops: tuple[float, float]

    def seconds(self, run: RunPlan) -> float | None:
        """Of a whole run; None where its steps are far from those measured, or it takes several slots."""
        blocks, flops = _work(run)
        low, high = self.flops[0] / _REACH, self.flops[1] * _REACH
        if run.placement.strategy.num_gpus > 1 or not low <= flops <= high:
            return None
        return self.other_seconds + run.num_steps * (blocks * self.block_seconds + flops / self.flops_per_second)


def with_times(plan: SweepPlan) -> SweepPlan:
    """The plan with the times that this machine's runs support, None for others, and with the reason.

    A plan for GPUs is returned as it is: its times are a model's, fitted to public runs.
    """
    if plan.cluster.kind != "cpu":
        return plan
    pace = read_pace(plan)
    runs = tuple(_timed(run, None if pace is None else pace.seconds(run), plan.cluster) for run in plan.runs)
    unknown = sum(run.placement.predicted_seconds is None for run in runs)
    if pace is None:
        source = "not measured on this machine; the first sweep here measures it"
    elif unknown == len(runs):
        source = f"not measured at such steps: {pace.num_runs} runs were trained on this machine, far from them"
    else:
        source = f"by {pace.num_runs} runs that were trained on this machine"
        source += f"; not measured for {unknown} of {len(runs)} runs, whose steps are far from those" if unknown else ""
    return replace(plan, runs=runs, time_source=source)


def _timed(run: RunPlan, seconds: float | None, cluster: Cluster) -> RunPlan:
    hours = None if seconds is None else seconds * run.placement.strategy.num_gpus / 3600
    price = cluster.price_per_gpu_hour
    cost = None if price is None or hours is None else price * hours
    placed = replace(run.placement, predicted_seconds=seconds, predicted_gpu_hours=hours, predicted_cost=cost)
    return replace(run, placement=placed)


def read_pace(plan: SweepPlan) -> CpuPace | None:
    """What runs of a plan's kind took on this machine; None where too few were trained."""
    runs = _read(_file(plan))
    if len(runs) < _LEAST:
        return None
    block, inverse = _fitted(runs)
    other = statistics.median(run.other_seconds for run in runs)
    flops = [run.flops for run in runs]
    return CpuPace(block, 1 / inverse, other, len(runs), (min(flops), max(flops)))


def remember(plan: SweepPlan, records: Sequence[RunRecord]) -> None:
    """Keep what a sweep's runs took on this machine's CPU; what cannot be kept is measured again another time."""
    if plan.cluster.kind != "cpu":
        return
    by_id = {run.run_id: run for run in plan.runs}
    new = [_took(by_id[each.run_id], each) for each in records if each.run_id in by_id]
    file = _file(plan)
    known = _read(file)
    fresh = [took for took in new if took is not None and took not in known]
    if fresh and file is not None:
        rows = [list(vars(took).values()) for took in [*known, *fresh][-_MOST_KEPT:]]
        with suppress(OSError, SweepFolderError):
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps(rows), durable=False)


def _work(run: RunPlan) -> tuple[float, float]:
    """Blocks and FLOPs of a step."""
    place = run.placement
    return place.profile.num_blocks * place.gradient_accumulation_steps, run.flops / run.num_steps


def _took(run: RunPlan, record: RunRecord) -> _Took | None:
    """What a run took; None where it says little: it was resumed, branched off or trained elsewhere."""
    seen = record.observed
    if seen is None or record.status != "completed" or len(record.attempts) != 1:
        return None
    (attempt,) = record.attempts
    if attempt.start_step or run.branch is not None or seen.seconds <= 0 or record.host != platform.node():
        return None
    slots = seen.world_size  # a run that took those that stood idle used as much of the machine as one on them in turn
    other = max(0.0, attempt.seconds - seen.seconds)
    return _Took(*_work(run), slots * seen.seconds / run.num_steps, slots * other)


def _fitted(runs: Sequence[_Took]) -> tuple[float, float]:
    """Seconds of a block and of a FLOP, neither below zero, by least squares on relative errors."""
    xs = [(run.blocks / run.step_seconds, run.flops / run.step_seconds) for run in runs]
    aa, ab, bb = (sum(x[i] * x[j] for x in xs) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = sum(x[0] for x in xs), sum(x[1] for x in xs)
    whole = aa * bb - ab * ab
    block, flop = ((bb * a - ab * b) / whole, (aa * b - ab * a) / whole) if whole > 1e-9 * aa * bb else (0.0, 0.0)
    return (block, flop) if block >= 0 and flop > 0 else (0.0, b / bb)


def _read(file: Path | None) -> list[_Took]:
    if file is None:
        return []
    try:
        found = [_Took(*(float(value) for value in row)) for row in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
    return [took for took in found if min(took.blocks, took.flops, took.step_seconds) > 0]


def _file(plan: SweepPlan) -> Path | None:
    """By all that makes other runs slower or faster than these; None without a cache folder."""
    spec = plan.spec
    kind = [getattr(spec.model, name, None) for name in ("family", "class_path", "architecture")]
    optimizer = "adamw" if spec.training.optimizer is None else spec.training.optimizer.name
    how = [spec.training.precision, str(spec.training.compile), optimizer]
    told = [_processor(), *_versions(), str(plan.cluster.gpus_per_node), *map(str, kind), *how]
    try:
        return user_cache_folder("cpu-time") / f"{hashlib.sha256('|'.join(told).encode()).hexdigest()[:24]}.json"
    except RuntimeError:
        return None


@functools.cache
def _processor() -> str:
    """The CPU, and how many of its cores this process may use."""
    lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines() if _CPU_INFO.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()} x {len(os.sched_getaffinity(0))}"


@functools.cache
def _versions() -> tuple[str, ...]:
    found: list[str] = []
    for name in ("torch", "deepspeed", "accelerate"):
        try:
            found.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            found.append("none")
    return tuple(found)

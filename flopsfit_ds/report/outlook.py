"""What the run at the target costs on the declared hardware, and what would make its prediction surer for how much."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from flopsfit_ds.base.errors import FitError, FlopsfitError
from flopsfit_ds.base.hardware import Cluster, Machine
from flopsfit_ds.base.units import format_bytes, format_count, format_seconds
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan, build_plan
from flopsfit_ds.records import RunRecord
from flopsfit_ds.report.findings import Findings
from flopsfit_ds.spec import ClassModel, DecoderModel, DesignPoint, PointsDesign

_MOST_RUNS = 8  # a proposal that is read in a glance; `flopsfit-ds next` gives more


@dataclass(frozen=True)
class Outlook:
    """Sentences of the answer.

    Attributes:
        cost: GPU-hours, money and layout of the run at the target, or why they are not known.
        surer: What a further batch of runs would change, and its price; None where there is nothing to say.
    """

    cost: str
    surer: str | None


def outlook(findings: Findings, plan: SweepPlan | None) -> Outlook | None:
    """What is next; None without an optimum.

    Args:
        findings: What the sweep found.
        plan: Its plan, which declares the hardware; a table of runs has none.
    """
    if findings.target is None:
        return None
    if plan is None:
        return Outlook("What it costs is not known: a table of runs declares no hardware.", None)
    return Outlook(_cost(findings, plan), _surer(findings, plan))


def money(gpu_hours: float, cluster: Cluster) -> str:
    """GPU-hours with their price, where the spec declares one."""
    text = f"{_rounded(gpu_hours)} {'CPU-slot' if cluster.device_name == 'cpu' else 'GPU'}-hours"
    if cluster.price_per_gpu_hour is None:
        return text
    return f"{text}, {_rounded(gpu_hours * cluster.price_per_gpu_hour)} at {cluster.price_per_gpu_hour:g} an hour"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def flops_per_gpu_second(records: Sequence[RunRecord]) -> float | None:
    """Median of what a device did in training, over the runs that were timed."""
    found = [
        record.observed.flops / (record.observed.seconds * record.observed.world_size)
        for record in records
        if record.observed is not None and record.observed.seconds > 0
    ]
    return statistics.median(found) if found else None


def _cost(findings: Findings, plan: SweepPlan) -> str:
    target, speed = findings.target, flops_per_gpu_second(findings.records)
    assert target is not None
    cluster = plan.cluster
    shown = "" if speed is None else money(target.compute / speed / 3600, cluster)
    beside = f" At the speed that these runs reached it would take {shown}." if shown else ""
    if not isinstance(plan.spec.model, DecoderModel):
        whose = "a class of your own" if isinstance(plan.spec.model, ClassModel) else "one of transformers"
        why = f"The model is {whose}, so that its layout at this size is planned only by a spec for it."
        return f"{why}{beside}"
    try:
        run = _planned(plan, target.num_params, target.compute)
    except FlopsfitError as error:
        return f"On {cluster.num_gpus} {cluster.device_name} it cannot be planned: {error}.{beside}"
    place, strategy = run.placement, run.placement.strategy
    if place.predicted_seconds is None:
        cost = "What it costs here was not measured: it goes"
    else:
        hours = place.predicted_seconds * strategy.num_gpus / 3600
        cost = f"It costs {money(hours, cluster)}: {format_seconds(place.predicted_seconds)}"
    return (
        f"{cost} on {strategy.num_gpus} "
        f"{cluster.device_name} under ZeRO-{strategy.zero_stage}"
        f"{' with offload' if strategy.offload != 'none' else ''}, micro-batches of "
        f"{strategy.micro_batch_size_per_gpu} x {place.gradient_accumulation_steps}, "
        f"{format_bytes(place.memory.device_total_bytes)} of {format_bytes(cluster.device_memory_bytes)} a device by "
        f"the memory estimate.{beside}"
    )


def _planned(plan: SweepPlan, num_params: float, compute: float) -> RunPlan:
    """The run at the target under the sweep's own rules and hardware.

    Raises:
        PlanError: It fits nowhere.
        SpecError: Its recipe cannot be made.
    """
    cluster = plan.cluster
    machine = Machine(
        device_name=cluster.device_name,
        num_devices=cluster.gpus_per_node,
        device_memory_bytes=None if cluster.kind == "cpu" else cluster.device_memory_bytes,
        host_memory_bytes=cluster.host_memory_bytes,
    )
    point = DesignPoint(num_params=num_params, compute=compute)
    spec = plan.spec.model_copy(update={"design": PointsDesign(method="points", points=(point,))})
    return build_plan(spec, corpus=plan.corpus, machine=machine).runs[0]


def _surer(findings: Findings, plan: SweepPlan) -> str | None:
    from flopsfit_ds.decide.choosing.choose import choose_next
    from flopsfit_ds.decide.choosing.sizes import sizes_to_be_had

    speed = flops_per_gpu_second(findings.records)
    if speed is None or findings.target is None or findings.fit is None:
        return None
    spent = sum(
        record.observed.seconds * record.observed.world_size
        for record in findings.records
        if record.observed is not None
    )
    cluster = plan.cluster
    try:
        found = choose_next(
            findings.points, spent, speed, target_compute=findings.target.compute, gpus=cluster.num_gpus,
            most_runs=_MOST_RUNS, model=findings.fit.prediction, sizes=sizes_to_be_had(plan),
        )  # fmt: skip
    except FitError:
        return None
    before, after = found.before, found.after
    sharper = (before.log_loss / after.log_loss, before.log_num_params / after.log_num_params)
    sizes = sorted(run.num_params for run in found.runs)
    return (
        f"Surer: {len(found.runs)} more runs of {format_count(sizes[0])} to {format_count(sizes[-1])} for "
        f"{money(found.gpu_seconds / 3600, cluster)}, no more than this sweep took, would make the error of the loss "
        f"there {sharper[0]:.2g} times smaller, that of the size {sharper[1]:.2g} times; flopsfit-ds next lists them."
    )

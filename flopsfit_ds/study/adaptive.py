"""A sweep that chooses its own runs: train, see what is uncertain at the target, choose, train, until it is enough."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from flopsfit_ds.base.errors import FitError, LaunchError, PlanError
from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.plan.recorded.chosen import Choices, ChosenBatch, ChosenRun, Stop, read_choices, write_choices
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import RunRecord
from flopsfit_ds.spec import AdaptiveDesign
from flopsfit_ds.spec.fit_options import COUNT_FIELDS

if TYPE_CHECKING:
    import numpy as np

    from flopsfit_ds.decide.choosing.belief import Place
    from flopsfit_ds.decide.choosing.choose import Chosen, Errors, NextRuns


class PlanAgain(Protocol):
    """Plans a design anew."""

    def __call__(self, choices: Choices | None = None) -> SweepPlan:
        """The plan with these batches; without, with those of the sweep's folder."""
        ...


EXECUTORS = ("auto", "local")
RATE_FACTORS = (0.5, 2.0)
"""Rates of a tuning run over the rate that was trained: those that `next` weighs."""
_LEAST_STEPS = 20
"""Of a run that is chosen: below it a loss is never smoothed, as the plan warns."""
_SAME_TOKENS = 0.05
"""Difference of ln D below which a loss differs by less than its noise: an exponent of .3 makes it 1.5% of a part."""
_SECONDS_PER_HOUR = 3600.0


def refuse_executor(executor: str, launched: bool) -> None:
    """Adaptive sweeps run on this machine's slots.

    Raises:
        LaunchError: Another executor is asked for, or a launcher started this process.
    """
    if executor not in EXECUTORS or (executor == "auto" and launched):
        who = "under a launcher, whose ranks end with the first batch" if executor in EXECUTORS else f"by {executor}"
        raise LaunchError(
            f"design.method adaptive is not carried out {who}: batches are packed for the slots of one machine; run "
            "`flopsfit-ds sweep` on it without --executor, or train with method isoflop and choose with `next`"
        )


def carry_on(
    plan: SweepPlan,
    plan_again: PlanAgain,
    train: Callable[[SweepPlan], tuple[RunRecord, ...]],
    say: Callable[[str], None],
    slots: int | None = None,
) -> tuple[SweepPlan, tuple[RunRecord, ...]]:
    """Train, choose, and train again, until it is enough. A kill at any moment loses nothing: call it again.

    Args:
        plan: With the batches that the folder holds.
        plan_again: Plans anew.
        train: Trains what of a plan has no record.
        say: Is told why it ends; what is chosen is among the warnings of the plan that is trained next.
        slots: Devices side by side; without it, those of the plan.

    Returns:
        The last plan, and its records. Where a run failed it ends there.

    Raises:
        FlopsfitError: As planning and training.
    """
    while True:
        records = train(plan)
        choices, _ = read_choices(plan.folder, plan.spec)
        basis = _basis(plan, records)
        known = choices.stop is not None and choices.stop.basis == basis
        if known or any(record.status in ("failed", "oom") for record in records):
            return plan, records
        decided = _decide(plan, records, replace(choices, stop=None), plan_again, slots or plan.cluster.num_gpus)
        if isinstance(decided, str):
            choices = replace(choices, stop=Stop(decided, basis))
            say(f"{plan.name}: nothing more is chosen: {decided}")
        else:
            choices = replace(choices, batches=(*choices.batches, decided), stop=None)
        write_choices(plan.folder, choices)
        plan = plan_again()
        if choices.stop is not None:
            return plan, records


def _basis(plan: SweepPlan, records: Sequence[RunRecord]) -> str:
    """Hash of what a stop is decided on: runs, losses, and what the design asks for."""
    content = [
        [(record.run_id, record.status, record.loss) for record in records],
        plan.spec.design.model_dump(mode="json"),
        plan.spec.fit.model_dump(mode="json"),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _decide(
    plan: SweepPlan, records: Sequence[RunRecord], choices: Choices, plan_again: PlanAgain, slots: int
) -> ChosenBatch | str:
    """The next batch, or why there is none."""
    from flopsfit_ds.decide.choosing.choose import choose_next, errors_now
    from flopsfit_ds.decide.sources import read_sources

    design, target = plan.spec.design, plan.spec.fit.target_compute
    assert isinstance(design, AdaptiveDesign)
    spent, more = _hours(records), design.batches - len(choices.batches)
    left = design.gpu_hours - spent
    of_money = f"{spent:.3g} of {design.gpu_hours:g} GPU-hours are spent"
    found, why = None, "the money is spent" if left <= 0 else f"all {design.batches} batches are trained"
    try:
        source = read_sources([plan.folder])
        speed = source.flops_per_second()
        if more > 0 and left > 0 and speed is not None:
            try:
                found = choose_next(
                    source.points, left / more * _SECONDS_PER_HOUR, speed, target_compute=target, gpus=slots,
                    most_runs=design.runs_per_batch, can_train=lambda place: _trainable(plan, place),
                )  # fmt: skip
            except FitError as error:
                why = str(error)
        now = errors_now(source.points, target) if found is None else found.before
    except FitError as error:
        return f"the runs so far carry no law to choose by: {error}"
    told = f"the standard error of N* at the target is {now.log_num_params:.1%}, of its loss {now.log_loss:.2%}"
    if _is_enough(design, now):
        return f"{told}, as asked; {of_money}"
    if found is None or speed is None:
        return f"{why}; {of_money}; {told}"
    batch = _as_batch(plan, found, choices, plan_again, spent, speed)
    if batch.runs:
        return batch
    return f"no run that would tell more can be planned ({'; '.join(batch.left_out)}); {of_money}; {told}"


def _is_enough(design: AdaptiveDesign, now: Errors) -> bool:
    asked = [(design.num_params_error, now.log_num_params), (design.loss_error, now.log_loss)]
    given = [(wanted, error) for wanted, error in asked if wanted is not None]
    return bool(given) and all(error <= wanted for wanted, error in given)


def _hours(records: Sequence[RunRecord]) -> float:
    """Device-hours of the training loops."""
    seen = [record.observed for record in records if record.observed is not None]
    return sum(each.seconds * each.world_size for each in seen) / _SECONDS_PER_HOUR


def _trainable(plan: SweepPlan, place: Place) -> np.ndarray:
    """Places whose tokens fill some steps and are no more than there are, and no sizes below those of the first batch.

    A family may have none that are smaller, and they would say least of a larger target.
    """
    batch = min(run.global_batch_sequences * run.context_length for run in plan.runs)
    least = min(getattr(run, COUNT_FIELDS[plan.spec.fit.parameters]) or math.inf for run in plan.runs)
    enough = (place.log_d >= math.log(_LEAST_STEPS * batch)) & (place.log_n >= math.log(least))
    unique = plan.runs[0].unique_tokens
    if unique is None:
        return enough
    most = max(unique, *(run.num_tokens for run in plan.runs))
    return enough & (place.log_d <= math.log(most))


def _as_batch(
    plan: SweepPlan,
    found: NextRuns,
    choices: Choices,
    plan_again: PlanAgain,
    spent: float,
    speed: float,
) -> ChosenBatch:
    """What was chosen as runs of this design; those that no plan takes, or that are there already, are left out."""
    batch = ChosenBatch(
        (), spent, 0.0, speed, found.before.log_num_params, found.before.log_loss, found.after.log_num_params,
        found.after.log_loss,
    )  # fmt: skip
    known, hours = plan.runs, 0.0
    for each in found.runs:
        what = f"{format_count(each.num_params)} parameters with {format_flops(each.compute)} FLOPs"
        run = _as_run(plan, each)
        longer = replace(batch, runs=(*batch.runs, run))
        try:
            runs = plan_again(choices=replace(choices, batches=(*choices.batches, longer))).runs
        except PlanError as error:
            batch = replace(batch, left_out=(*batch.left_out, f"{what}: {error}"))
            continue
        new = [one for one in runs if one.run_id not in {old.run_id for old in known}]
        if not new or (each.purpose == "law" and _is_there(new[0], known)):
            batch = replace(batch, left_out=(*batch.left_out, f"{what}: is trained already"))
            continue
        batch, known, hours = longer, runs, hours + each.gpu_seconds / _SECONDS_PER_HOUR
    return replace(batch, gpu_hours=hours)


def _is_there(new: RunPlan, known: Sequence[RunPlan]) -> bool:
    """Whether a size has been trained on as many tokens: a family of few sizes has none nearer to what was chosen."""
    same = [run for run in known if run.num_params_total == new.num_params_total]
    return any(abs(math.log(run.num_tokens / new.num_tokens)) < _SAME_TOKENS for run in same)


def _as_run(plan: SweepPlan, chosen: Chosen) -> ChosenRun:
    """A choice, whose size is as the law counts it, in the words of a design."""
    field = COUNT_FIELDS[plan.spec.fit.parameters]
    if chosen.purpose == "tuning":
        run = min(plan.runs, key=lambda each: _apart(each, field, chosen))
        rates = tuple(factor * run.recipe.learning_rate for factor in RATE_FACTORS)
        return ChosenRun("tuning", run.num_params_total, run.flops, run.num_tokens, rates)
    meant = "num_params_active" if plan.spec.fit.parameters == "active" else "num_params_total"
    return ChosenRun("law", _converted(plan.runs, field, meant, chosen.num_params), chosen.compute)


def _apart(run: RunPlan, field: str, chosen: Chosen) -> float:
    size = getattr(run, field) or run.num_params_total
    return abs(math.log(size / chosen.num_params)) + abs(math.log(run.num_tokens / chosen.num_tokens))


def _converted(runs: Sequence[RunPlan], counted: str, meant: str, num_params: float) -> float:
    """A size that the law counts one way as a design counts it: by a line in logarithms between the nearest runs."""
    pairs = {(getattr(run, counted), getattr(run, meant)) for run in runs}
    known = sorted((math.log(a), math.log(b)) for a, b in pairs if a and b)
    if counted == meant or len({a for a, _ in known}) < 2:
        return num_params
    wanted = math.log(num_params)
    above = next((k for k, (a, _) in enumerate(known) if a >= wanted), len(known) - 1)
    (a, x), (b, y) = known[max(0, above - 1)], known[max(1, above)]
    return math.exp(x + (y - x) * (wanted - a) / (b - a)) if b > a else math.exp(y)

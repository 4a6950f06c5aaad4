"""A short sweep that sets the multiplier of a rule: a sweep like any other, and what its records say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.units import format_count
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import RunRecord
from flopsfit_ds.spec import DesignPoint, PointsDesign, SweepSpec

SUFFIX = "-tune"
"""Of the folder in which the runs of the tuning lie, beside the sweep's own."""
_DISAGREEMENT = 2.0
"""Ratio of two sizes' best multipliers beyond which the rule's exponents are said not to hold here."""


@dataclass(frozen=True)
class Tuned:
    """What a tuning came to.

    Attributes:
        multiplier: Geometric mean of the sizes' best ones.
        best: Size in parameters, and its best multiplier, each.
    """

    multiplier: float
    best: tuple[tuple[int, float], ...]

    def words(self) -> str:
        """For people."""
        each = ", ".join(f"{value:.3g} at {format_count(size)} parameters" for size, value in self.best)
        return f"training.learning_rate: the tuning set the multiplier to {self.multiplier:g} ({each})"

    def warning(self) -> str | None:
        """What to say where one multiplier does not hold for all sizes."""
        found = [value for _, value in self.best]
        if max(found) / min(found) <= _DISAGREEMENT:
            return None
        return (
            f"training.learning_rate: the best multiplier changes {max(found) / min(found):.2g} times from one "
            "size to the next: the exponents of this rule do not hold on this data; take another rule, or custom"
        )


def tuning_spec(spec: SweepSpec) -> SweepSpec | None:
    """The sweep that finds the multiplier of a spec's rule; None where none is asked for."""
    rule = spec.training.learning_rate
    if rule is None or rule.tune is None:
        return None
    points = tuple(
        DesignPoint(num_params=size, num_tokens=size * rule.tune.tokens_per_parameter) for size in rule.tune.num_params
    )
    several = rule.model_copy(update={"multipliers": rule.tune.multipliers, "tune": None})
    return spec.model_copy(
        update={
            "name": spec.name + SUFFIX,
            "design": PointsDesign(method="points", points=points),
            "training": spec.training.model_copy(update={"learning_rate": several}),
        }
    )


def with_multiplier(spec: SweepSpec, multiplier: float) -> SweepSpec:
    """The spec whose tuning is done."""
    rule = spec.training.learning_rate
    assert rule is not None
    settled = rule.model_copy(update={"multiplier": multiplier, "tune": None})
    return spec.model_copy(update={"training": spec.training.model_copy(update={"learning_rate": settled})})


def read_tuning(plan: SweepPlan, records: Sequence[RunRecord]) -> Tuned | None:
    """What the records of a tuning say; None as long as some of its runs have none.

    Args:
        plan: Of the tuning.
        records: Those there are.

    Raises:
        PlanError: The best of a size is the smallest or largest that was tried, or all of its runs failed.
    """
    found = {record.run_id: record for record in records}
    if any(run.run_id not in found for run in plan.runs):
        return None
    rule = plan.spec.training.learning_rate
    assert rule is not None
    assert rule.multipliers is not None
    best = []
    for size, runs in itertools.groupby(plan.runs, lambda run: run.num_params_total):
        rates = list(runs)
        losses: dict[float, list[float]] = {each: [] for each in rule.multipliers}
        per_rate = len(rates) // len(rule.multipliers)
        for number, run in enumerate(rates):
            record = found[run.run_id]
            ended = record.status == "completed" and record.loss is not None
            losses[rule.multipliers[number // per_rate]].append(record.loss if ended and record.loss else math.inf)
        means = sorted((each, sum(values) / len(values)) for each, values in losses.items())
        best.append((size, _lowest(size, means)))
    mean = math.exp(sum(math.log(value) for _, value in best) / len(best))
    return Tuned(float(f"{mean:.3g}"), tuple(best))


def _lowest(size: int, losses: Sequence[tuple[float, float]]) -> float:
    """The multiplier of the lowest loss, by a parabola in its logarithm through the best and its two neighbours."""
    number = min(range(len(losses)), key=lambda each: losses[each][1])
    tried, name = [each for each, _ in losses], f"{format_count(size)} parameters"
    if not math.isfinite(losses[number][1]):
        raise PlanError(f"training.learning_rate.tune: no run of {name} completed; see what they say, and `retry` them")
    if number in (0, len(losses) - 1):
        raise PlanError(
            f"training.learning_rate.tune: of {name} the {'smallest' if number == 0 else 'largest'} multiplier tried, "
            f"{tried[number]:g}, is the best; add {'smaller' if number == 0 else 'larger'} ones to tune.multipliers"
        )
    (a, low), (b, middle), (c, high) = losses[number - 1 : number + 2]
    if not math.isfinite(low + high):
        return b
    left, right = math.log(b / a), math.log(c / b)
    up, down = (high - middle) / right, (middle - low) / left
    curvature = (up - down) / (left + right)
    slope = (up * left + down * right) / (left + right)
    return b * math.exp(-slope / (2 * curvature)) if curvature > 0 else b

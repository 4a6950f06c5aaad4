"""Which points a law can be fitted to, and why the others are left out."""

import math
from collections.abc import Iterable

import numpy as np

from flopsfit_ds.fit.points.dependence import drop_undecayed
from flopsfit_ds.fit.points.points import Exclusion, Point, Selection

_MAX_DECADES_FROM_MEDIAN = 9.0
"""A column in billions is nine decades off; smaller mistakes of unit may be a true range of sizes."""
_FAR_FROM_BUDGET = 100.0
"""A budget in another unit (k, M, B) is a thousandfold off or more."""


def select_points(points: Iterable[Point]) -> Selection:
    """Keep the points that a law can be fitted to.

    Left out, each with its reason: values that are not positive and finite, values more than nine decades from the
    median of their column (a mistaken unit), budgets a hundred times off what the run took, checkpoints of runs whose
    learning rate was still to decay, and runs at a learning rate worse than the best one tried at the same size,
    tokens and budget. Seeds at the best learning rate all stay, as points of their own.
    """
    kept: list[Point] = []
    excluded: list[Exclusion] = []
    for point in points:
        reason = _invalid(point)
        if reason is None:
            kept.append(point)
        else:
            excluded.append(_exclusion(point, reason))
    for name in ("num_params", "num_tokens", "loss", "compute_flops"):
        kept = _drop_implausible(kept, name, excluded)
    kept = _drop_wrong_budgets(kept, excluded)
    kept = drop_undecayed(kept, excluded)
    kept = _drop_under_tuned(kept, excluded)
    return Selection(tuple(kept), tuple(excluded))


def _exclusion(point: Point, reason: str) -> Exclusion:
    return Exclusion(point.row, point.label or point.run_id, reason)


def _invalid(point: Point) -> str | None:
    named = [
        ("parameters", point.num_params),
        ("tokens", point.num_tokens),
        ("loss", point.loss),
        ("FLOPs", point.flops),
    ]
    if point.unique_tokens is not None:
        named.append(("unique tokens", point.unique_tokens))
    if point.compute_budget_flops is not None:
        named.append(("the compute budget", point.compute_budget_flops))
    for name, value in named:
        if value is None:
            continue
        if not math.isfinite(value):
            return f"{name} is {value}"
        if value <= 0:
            return f"{name} is {value:g}, must be positive"
    return None


def _drop_wrong_budgets(points: list[Point], excluded: list[Exclusion]) -> list[Point]:
    kept: list[Point] = []
    for point in points:
        budget = point.compute_budget_flops
        if budget is None or 1 / _FAR_FROM_BUDGET <= point.compute_flops / budget <= _FAR_FROM_BUDGET:
            kept.append(point)
            continue
        reason = (
            f"the compute budget is {budget:.3g} where the run took {point.compute_flops:.3g} FLOPs: name another "
            "column, or leave budgets out to have them inferred"
        )
        excluded.append(_exclusion(point, reason))
    return kept


def _drop_implausible(points: list[Point], name: str, excluded: list[Exclusion]) -> list[Point]:
    if len(points) < 3:
        return points
    values = np.array([math.log10(getattr(p, name)) for p in points])
    middle = float(np.median(values))
    far = np.abs(values - middle) > _MAX_DECADES_FROM_MEDIAN
    for point, is_far in zip(points, far, strict=True):
        if is_far:
            reason = f"{name} is {getattr(point, name):.3g} where the median is {10**middle:.3g}: a mistaken unit?"
            excluded.append(_exclusion(point, reason))
    return [p for p, is_far in zip(points, far, strict=True) if not is_far]


def same_size_key(point: Point) -> tuple[float, float, float | None]:
    """What points share that differ only in seed or learning rate."""
    return round(math.log(point.num_params), 4), round(math.log(point.num_tokens), 3), point.compute_budget_flops


def learning_rate_groups(points: Iterable[Point]) -> list[dict[float, list[Point]]]:
    """Points by learning rate, for each size and tokens at which at least two learning rates were tried."""
    groups: dict[tuple[float, float, float | None], dict[float, list[Point]]] = {}
    for point in points:
        if point.learning_rate is not None and math.isfinite(point.learning_rate):
            groups.setdefault(same_size_key(point), {}).setdefault(point.learning_rate, []).append(point)
    return [group for group in groups.values() if len(group) > 1]


def _drop_under_tuned(points: list[Point], excluded: list[Exclusion]) -> list[Point]:
    dropped: set[int] = set()
    for group in learning_rate_groups(points):
        means = {rate: float(np.mean([p.loss for p in members])) for rate, members in group.items()}
        best = min(means, key=lambda rate: means[rate])
        for rate, members in group.items():
            if rate == best:
                continue
            for point in members:
                reason = (
                    f"under-tuned: learning rate {rate:g} gives {means[rate]:.4f}, {best:g} gives {means[best]:.4f}"
                )
                excluded.append(_exclusion(point, reason))
                dropped.add(id(point))
    return [p for p in points if id(p) not in dropped]

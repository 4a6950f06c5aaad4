"""The points a law is fitted to: one finished run each, wherever it came from."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_count
from flopsfit_ds.fit.laws.base import ComputeRule
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.model.flops import FLOPS_PER_PARAMETER_TOKEN, conventional_flops

if TYPE_CHECKING:
    from flopsfit_ds.records import RunRecord

CONVENTION = f"C = {FLOPS_PER_PARAMETER_TOKEN} N D"
_MAX_DECADES_FROM_MEDIAN = 9.0
SAME_RATIO = 0.02
_FAR_FROM_BUDGET = 100.0
_ENDS_OF_LINES = (2, 3, 4)


@dataclass(frozen=True)
class Point:
    """One finished run.

    Attributes:
        num_params: parameters N.
        num_tokens: training tokens D.
        loss: held-out loss, nats per token (any unit, the same for all points).
        flops: training FLOPs C; None means 6 N D.
        seed: random seed.
        learning_rate: peak learning rate, where several were tried.
        label: name of the run, for people.
        run_id: identity of the run; points of one run share it.
        unique_tokens: distinct training tokens, where data was repeated.
        compute_budget_flops: nominal isoFLOP budget; None means that budgets are inferred from C.
        loss_standard_error: standard error of `loss` over the held-out set.
        row: where the point stood in its source, counted from 1 at the first row of data; None for a point made by
            hand.
    """

    num_params: float
    num_tokens: float
    loss: float
    flops: float | None = None
    seed: int | None = None
    learning_rate: float | None = None
    label: str | None = None
    run_id: str | None = None
    unique_tokens: float | None = None
    compute_budget_flops: float | None = None
    loss_standard_error: float | None = None
    row: int | None = None

    @property
    def compute_flops(self) -> float:
        """Training FLOPs, by the convention 6 N D where none were given."""
        return conventional_flops(self.num_params, self.num_tokens) if self.flops is None else self.flops


@dataclass(frozen=True)
class Exclusion:
    """A row or run that does not enter the fit.

    Attributes:
        row: its place in the source, counted from 1; None where unknown.
        name: run id or label, where there is one.
        reason: why, with the numbers.
    """

    row: int | None
    name: str | None
    reason: str


@dataclass(frozen=True)
class Selection:
    """The points that enter a fit, and those that do not."""

    points: tuple[Point, ...]
    excluded: tuple[Exclusion, ...]


@dataclass(frozen=True, eq=False)
class PointArrays:
    """Columns of the points, each (points,)."""

    num_params: FloatArray
    num_tokens: FloatArray
    loss: FloatArray
    flops: FloatArray
    unique_tokens: FloatArray | None

    @classmethod
    def of(cls, points: Sequence[Point]) -> "PointArrays":
        """Columns of `points`; `unique_tokens` is None where no point repeats its data."""
        num_tokens = np.array([p.num_tokens for p in points], dtype=np.float64)
        unique = np.array([p.unique_tokens or p.num_tokens for p in points], dtype=np.float64)
        repeats = bool((num_tokens > unique * (1 + 1e-6)).any())
        return cls(
            np.array([p.num_params for p in points], dtype=np.float64),
            num_tokens,
            np.array([p.loss for p in points], dtype=np.float64),
            np.array([p.compute_flops for p in points], dtype=np.float64),
            np.minimum(unique, num_tokens) if repeats else None,
        )


def points_from_records(
    records: Iterable["RunRecord"], *, parameter_count: Literal["total", "non-embedding"] = "total"
) -> Selection:
    """Points of the completed runs of a sweep; the others are listed with their reasons.

    N is the count of all parameters unless `parameter_count` says otherwise (Hoffmann et al. 2022 count all, Kaplan et
    al. 2020 leave out embeddings). D and C are the tokens and FLOPs that were realised.
    """
    points: list[Point] = []
    excluded: list[Exclusion] = []
    for number, record in enumerate(records, start=1):
        reason = None
        if record.status != "completed":
            reason = f"status {record.status}" + (f": {record.reason}" if record.reason else "")
        elif record.loss is None or record.observed is None:
            reason = "completed without a held-out loss"
        if reason is not None or record.loss is None or record.observed is None:
            excluded.append(Exclusion(number, record.label or record.run_id, reason or "no loss"))
            continue
        planned = record.planned
        points.append(
            Point(
                num_params=planned.num_params_total if parameter_count == "total" else planned.num_params_non_embedding,
                num_tokens=record.observed.num_tokens,
                loss=record.loss,
                flops=record.observed.flops,
                seed=record.seed,
                learning_rate=record.learning_rate,
                label=record.label,
                run_id=record.run_id,
                unique_tokens=record.unique_tokens,
                compute_budget_flops=record.compute_budget_flops,
                loss_standard_error=record.loss_standard_error,
                row=number,
            )
        )
    return Selection(tuple(points), tuple(excluded))


def select_points(points: Iterable[Point]) -> Selection:
    """Keep the points that a law can be fitted to.

    Left out, each with its reason: values that are not positive and finite, values more than nine decades from the
    median of their column (a mistaken unit), budgets a hundred times off what the run took, and runs at a learning
    rate worse than the best one tried at the same size, tokens and budget. Seeds at the best learning rate all stay,
    as points of their own.
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


def compute_rule_of(arrays: PointArrays) -> ComputeRule:
    """How compute divides into N and D for these points, said in words.

    FLOPs within 2% of a constant multiple of N D give that constant (6 where it is 6). Where the multiple depends on
    the size, as for small models whose attention and output head weigh in, ln(C/(N D)) is fitted by straight lines in
    ln N: one, two or three, the fewest that leave no point 2% off; beyond the sizes of the points it stays constant.

    Raises:
        FitError: FLOPs that have nothing to do with N D.
    """
    log_ratio = np.log(arrays.flops / arrays.num_params / arrays.num_tokens)
    middle = float(np.median(log_ratio))
    if float(np.abs(log_ratio - math.log(FLOPS_PER_PARAMETER_TOKEN)).max()) <= SAME_RATIO:
        return ComputeRule.constant(math.log(FLOPS_PER_PARAMETER_TOKEN), CONVENTION)
    rule = ComputeRule.constant(middle, f"C = {math.exp(middle):.3g} N D, the median of the FLOPs given")
    log_n = np.log(arrays.num_params)
    sizes = np.array(sorted(set(np.round(log_n, 4).tolist())), dtype=np.float64)
    for count in _ENDS_OF_LINES:
        if compute_misfit(rule, arrays) <= SAME_RATIO or len(sizes) < max(2, 2 * count - 3):
            break
        even = np.linspace(sizes[0], sizes[-1], count)
        ends = sizes[np.unique(np.abs(sizes[None, :] - even[:, None]).argmin(axis=1))]
        rule = _lines(log_n, log_ratio, ends)
    if len(rule.log_sizes) == 1:
        return rule
    misfit = math.expm1(compute_misfit(rule, arrays))
    return replace(rule, description=f"{rule.description}, {misfit:.1%} off at most; constant beyond")


def compute_misfit(rule: ComputeRule, arrays: PointArrays) -> float:
    """The largest |ln C - ln C by the rule| over the points."""
    by_rule = rule.log_flops(np.log(arrays.num_params), np.log(arrays.num_tokens))
    return float(np.abs(np.log(arrays.flops) - by_rule).max())


def _lines(log_n: FloatArray, log_ratio: FloatArray, ends: FloatArray) -> ComputeRule:
    """Least-squares straight lines that meet at `ends`."""
    hats = np.stack([np.interp(log_n, ends, row) for row in np.eye(len(ends))], axis=1)
    ratios, *_ = np.linalg.lstsq(hats, log_ratio, rcond=None)
    slopes = np.diff(ratios) / np.diff(ends)
    steepest = float(slopes[np.abs(slopes).argmax()])
    if not (slopes.min() > -0.9 and slopes.max() < 2.0):
        raise FitError(
            f"FLOPs do not go with parameters times tokens: C/(N D) runs from {math.exp(log_ratio.min()):.3g} to "
            f"{math.exp(log_ratio.max()):.3g} and as N^{steepest:.2f}; check which columns hold them"
        )
    where = [f"{math.exp(r):.3g} at {format_count(math.exp(n))}" for n, r in zip(ends, ratios, strict=True)]
    power = f"{math.exp(ratios[0] - slopes[0] * ends[0]):.3g} N^{1 + slopes[0]:.3f} D"
    words = f"C = {power}, C/(N D) {' and '.join(where)}" if len(ends) == 2 else f"C/(N D) {', '.join(where)}"
    description = f"{words} parameters, fitted to the FLOPs given"
    return ComputeRule(tuple(ends.tolist()), tuple(ratios.tolist()), description)


def in_order(points: Iterable[Point]) -> tuple[Point, ...]:
    """Points by size, tokens, loss and row: the order in which they enter a fit, whatever the order of the source."""
    return tuple(sorted(points, key=lambda p: (p.num_params, p.num_tokens, p.loss, p.row or 0)))


def with_rows(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points that know their place: those without a row get their index, from 1."""
    return tuple(p if p.row is not None else replace(p, row=k) for k, p in enumerate(points, start=1))

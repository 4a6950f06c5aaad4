"""Approaches 1 and 2 of Hoffmann et al. 2022, as diagnostics beside the law: the envelope and the isoFLOP parabolas.

Neither assumes a law of loss. A parabola of loss in ln N is fitted to each budget; its vertex is that budget's optimum.
A vertex is refused, with the reason, unless it lies between sizes that were tried: an optimum at an edge is no optimum.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import Point, PointArrays
from flopsfit_ds.fit.points.selection import select_points

MIN_SIZES = 3  # a parabola has three coefficients
_BUDGET_WIDTH = 0.25
"""E-folds. Of nine public tables the budgets of five are exact to 1e-3 and 0.2 to 0.5 apart; traced from a figure they
scatter, and a width of 0.1 loses 49 of 157 of those points."""
_STRAY_SHARE = 0.33
"""Of the largest group. On the same tables 0.5 leaves out whole budgets of eight; 0.2 takes groups of few points, which
lie between budgets, for budgets in five."""
_LEAST_GAP = 0.05
"""Compute of one budget differs by this much where tokens are rounded to few steps, or FLOPs depend on the shape."""
_SAME_SIZE = 0.01  # of ln N: below the steps of any grid, above what rounding does to a size
_GAP_IN_WIDTHS = 3.0  # between points drawn evenly, a gap thrice as wide as what lies on either side is rare


@dataclass(frozen=True)
class BudgetMinimum:
    """The parabola of one budget, loss = c0 + c1 x + c2 x^2 with x = ln N - log_centre.

    Attributes:
        compute_flops: The budget (nominal, or the geometric mean of its points).
        computes: Smallest and largest compute of its points.
        num_points: Points in the budget.
        sizes: Smallest and largest number of parameters tried.
        log_centre: Origin of x.
        coefficients: (c0, c1, c2), or None with fewer than three sizes.
        num_params: The vertex N*, None where refused.
        num_tokens: D* at the vertex, None where refused.
        loss: Loss at the vertex, None where refused.
        log_num_params_standard_error: Standard error of ln N*, from the pooled scatter about the parabolas; None
            where there are no spare points to judge scatter by.
        refused: Why there is no minimum, None where there is one.
    """

    compute_flops: float
    computes: tuple[float, float]
    num_points: int
    sizes: tuple[float, float]
    log_centre: float
    coefficients: tuple[float, float, float] | None
    num_params: float | None
    num_tokens: float | None
    loss: float | None
    log_num_params_standard_error: float | None
    refused: str | None

    def curve(self, num_params: FloatArray) -> FloatArray:
        """Loss of the parabola at these sizes."""
        if self.coefficients is None:
            return np.full(np.shape(num_params), np.nan)
        c0, c1, c2 = self.coefficients
        x = np.log(num_params) - self.log_centre
        return c0 + x * (c1 + x * c2)


@dataclass(frozen=True)
class PowerLaw:
    """value = exp(log_factor) * C^exponent, fitted in logarithms.

    Attributes:
        standard_error: Of the exponent; None with two budgets (nothing to judge it by) unless the minima carry their
            own.
    """

    exponent: float
    log_factor: float
    standard_error: float | None
    num_points: int

    def at(self, compute_flops: float) -> float:
        """The value at this compute."""
        return math.exp(self.log_factor + self.exponent * math.log(compute_flops))


@dataclass(frozen=True)
class IsoflopDiagnostics:
    """Both approaches.

    Attributes:
        budgets: One entry for each compute budget, accepted or refused.
        size_law: N* ~ C^a over the accepted minima (approach 2); None with fewer than two.
        envelope: Indices of the points on the lower envelope of loss against compute (approach 1).
        envelope_law: N ~ C^a along the envelope; None with fewer than three distinct budgets on it.
    """

    budgets: tuple[BudgetMinimum, ...]
    size_law: PowerLaw | None
    envelope: tuple[int, ...]
    envelope_law: PowerLaw | None


def budget_groups(points: Sequence[Point]) -> list[list[int]]:
    """Indices of the points of each compute budget, by rising budget.

    Nominal budgets are used where every point has one. Otherwise sorted compute is cut at its widest gaps until no
    group spans more than a factor of 1.28; a group is cut further where its points lie in tight heaps, each with sizes
    enough for a parabola of its own. Groups less than a third as large as the largest are taken for stray points.
    """
    if points and all(p.compute_budget_flops is not None for p in points):
        nominal: dict[float, list[int]] = {}
        for index, point in enumerate(points):
            nominal.setdefault(float(point.compute_budget_flops or 0.0), []).append(index)
        return [nominal[budget] for budget in sorted(nominal)]
    log_c, log_n = np.log([p.compute_flops for p in points]), np.log([p.num_params for p in points])
    wide = _cut_at_gaps(np.argsort(log_c, kind="stable"), log_c)
    groups = [heap for group in wide for heap in _heaps(group, log_c, log_n)]
    most = max((len(group) for group in groups), default=0)
    return [group for group in groups if len(group) >= _STRAY_SHARE * most]


def _cut_at_gaps(order: np.ndarray, log_c: FloatArray) -> list[list[int]]:
    """Groups of a sorted run of points, none wider than a budget."""
    done: list[list[int]] = []
    pending = [order]
    while pending:
        part = pending.pop()
        values = log_c[part]
        if len(part) == 0 or values[-1] - values[0] <= _BUDGET_WIDTH:
            done.append(part.tolist())
            continue
        cut = int(np.diff(values).argmax()) + 1
        pending += [part[cut:], part[:cut]]
    return [group for group in done if group]


def _heaps(group: list[int], log_c: FloatArray, log_n: FloatArray) -> list[list[int]]:
    """The group in as many heaps of compute as its gaps show clearly; whole where they show none.

    Heaps whose sizes do not overlap are one budget, the FLOPs of which depend on the size.
    """
    gaps = np.diff(log_c[group])
    widest = np.argsort(-gaps, kind="stable")
    for cuts in range(len(group) // MIN_SIZES - 1, 0, -1):
        least = float(gaps[widest[cuts - 1]])
        parts = [part.tolist() for part in np.split(np.array(group), np.sort(widest[:cuts]) + 1)]
        if least < max(_LEAST_GAP, _GAP_IN_WIDTHS * max(float(np.ptp(log_c[part])) for part in parts)):
            continue
        overlap = all(
            log_n[a].min() < log_n[b].max() and log_n[b].min() < log_n[a].max() for a, b in itertools.pairwise(parts)
        )
        if overlap and all(_distinct_sizes(log_n[part]) >= MIN_SIZES for part in parts):
            return parts
    return [group]


def _distinct_sizes(log_n: FloatArray) -> int:
    return len(np.unique(np.round(log_n, 3)))


def isoflop_minima(points: Sequence[Point]) -> IsoflopDiagnostics:
    """Parabolas and envelope of the points; works where no law can be fitted.

    Unusable points (see `selection.select_points`) are left out.
    """
    usable = list(select_points(points).points)
    if not usable:
        return IsoflopDiagnostics((), None, (), None)
    arrays = PointArrays.of(usable)
    parabolas = [_Parabola.fit(usable, arrays, group) for group in budget_groups(usable)]
    spare = sum(p.spare for p in parabolas)
    variance = sum(p.squares for p in parabolas) / spare if spare else None
    budgets = tuple(p.minimum(variance) for p in parabolas if p.distinct_sizes > 1 or len(p.group) > 1)
    envelope = _envelope(arrays)
    return IsoflopDiagnostics(budgets, _size_law(budgets), envelope, _envelope_law(arrays, envelope))


@dataclass(frozen=True, eq=False)
class _Parabola:
    group: list[int]
    arrays: PointArrays
    compute: float
    centre: float
    distinct_sizes: int
    coefficients: FloatArray | None
    covariance: FloatArray | None
    squares: float
    spare: int

    @classmethod
    def fit(cls, points: Sequence[Point], arrays: PointArrays, group: list[int]) -> "_Parabola":
        log_n, loss = np.log(arrays.num_params[group]), arrays.loss[group]
        nominal = points[group[0]].compute_budget_flops
        compute = float(np.exp(np.log(arrays.flops[group]).mean())) if nominal is None else nominal
        centre = float(log_n.mean())
        distinct = _distinct_sizes(log_n)
        if distinct < MIN_SIZES:
            return cls(group, arrays, compute, centre, distinct, None, None, 0.0, 0)
        x = log_n - centre
        design = np.stack([np.ones_like(x), x, x * x], axis=1)
        inverse = np.linalg.pinv(design.T @ design)
        coefficients = inverse @ (design.T @ loss)
        squares = float(((loss - design @ coefficients) ** 2).sum())
        return cls(group, arrays, compute, centre, distinct, coefficients, inverse, squares, len(group) - 3)

    def minimum(self, variance: float | None) -> BudgetMinimum:
        n, loss = self.arrays.num_params[self.group], self.arrays.loss[self.group]
        sizes = (float(n.min()), float(n.max()))
        flops = self.arrays.flops[self.group]
        known = (self.compute, (float(flops.min()), float(flops.max())), len(n), sizes, self.centre)
        if self.coefficients is None or self.covariance is None:
            reason = f"{self.distinct_sizes} sizes; a parabola needs at least {MIN_SIZES}"
            return BudgetMinimum(*known, None, None, None, None, None, reason)
        c0, c1, c2 = (float(c) for c in self.coefficients)
        reason = self._refusal(c1, c2, float(n[int(loss.argmin())]), sizes)
        if reason is not None:
            return BudgetMinimum(*known, (c0, c1, c2), None, None, None, None, reason)
        x = -c1 / (2.0 * c2)
        slope = np.array([0.0, -1.0 / (2.0 * c2), c1 / (2.0 * c2**2)])
        error = None if variance is None else math.sqrt(max(0.0, float(slope @ self.covariance @ slope) * variance))
        num_params = math.exp(self.centre + x)
        ratio = np.log(flops / (n * self.arrays.num_tokens[self.group]))
        per_pair = float(np.interp(math.log(num_params), np.sort(np.log(n)), ratio[np.argsort(n)]))
        num_tokens = self.compute / (math.exp(per_pair) * num_params)
        value = c0 + x * (c1 + x * c2)
        return BudgetMinimum(*known, (c0, c1, c2), num_params, num_tokens, value, error, None)

    def _refusal(self, c1: float, c2: float, best_size: float, sizes: tuple[float, float]) -> str | None:
        if c2 <= 0:
            return "the losses do not curve upwards, so there is no minimum; try a wider range of sizes"
        vertex = math.exp(min(700.0, max(-700.0, self.centre - c1 / (2.0 * c2))))
        for edge, name, direction in ((sizes[0], "smallest", "smaller"), (sizes[1], "largest", "larger")):
            outside = vertex < edge if name == "smallest" else vertex > edge
            if outside or best_size == edge:
                return (
                    f"minimum at an edge: the {name} size tried ({edge:.3g}) is the best, vertex at {vertex:.3g}; try "
                    f"{direction} sizes at this budget"
                )
        return None


def _size_law(budgets: Sequence[BudgetMinimum]) -> PowerLaw | None:
    found = [b for b in budgets if b.num_params is not None]
    log_c = np.log([b.compute_flops for b in found])
    log_n = np.log([b.num_params or 1.0 for b in found])
    errors = [b.log_num_params_standard_error for b in found]
    known = np.array([e for e in errors if e is not None and e > 0])
    return _power_law(log_c, log_n, known if len(known) == len(found) else None)


def _power_law(log_x: FloatArray, log_y: FloatArray, errors: FloatArray | None) -> PowerLaw | None:
    """Weighted straight line; its error is the larger of what the points' errors and their scatter imply."""
    if len(np.unique(np.round(log_x, 6))) < 2:
        return None
    weight = np.ones_like(log_x) if errors is None else 1.0 / errors**2
    centre = float((weight * log_x).sum() / weight.sum())
    spread = float((weight * (log_x - centre) ** 2).sum())
    slope = float((weight * (log_x - centre) * log_y).sum() / spread)
    start = float((weight * log_y).sum() / weight.sum()) - slope * centre
    spare = len(log_x) - 2
    scatter = float((weight * (log_y - start - slope * log_x) ** 2).sum()) / spare if spare > 0 else None
    if errors is not None:
        scatter = max(1.0, scatter or 0.0)
    error = None if scatter is None else math.sqrt(scatter / spread)
    return PowerLaw(slope, start, error, len(log_x))


def _envelope(arrays: PointArrays) -> tuple[int, ...]:
    """Points below which no cheaper point lies: the best loss so far as compute grows, one for each 0.1 decade."""
    order = np.lexsort((arrays.loss, arrays.flops))
    best = math.inf
    chosen: dict[int, int] = {}
    for index in order:
        if arrays.loss[index] < best:
            best = float(arrays.loss[index])
            chosen[round(10 * math.log10(arrays.flops[index]))] = int(index)
    return tuple(chosen.values())


def _envelope_law(arrays: PointArrays, envelope: tuple[int, ...]) -> PowerLaw | None:
    if len(envelope) < 3:
        return None
    index = list(envelope)
    law = _power_law(np.log(arrays.flops[index]), np.log(arrays.num_params[index]), None)
    if law is None or law.standard_error is None:
        return law
    span = float(np.log(arrays.flops[index[-1]] / arrays.flops[index[0]]))
    tilt = (_step(arrays, index[0]) + _step(arrays, index[-1])) / 2.0 / span
    return replace(law, standard_error=math.hypot(law.standard_error, tilt / 2.0))


def _step(arrays: PointArrays, index: int) -> float:
    """From this point's ln N to the next sizes tried at about its compute, or at any where it stands alone.

    The best of the sizes tried may be half a step off the best size. On a grid that moves with compute all budgets are
    off alike and no scatter tells: the most by which the two ends can tilt an envelope counts as two standard errors.
    """
    log_n, log_c = np.log(arrays.num_params), np.log(arrays.flops)
    steps = np.abs(log_n - log_n[index])
    others = steps > _SAME_SIZE
    near = others & (np.abs(log_c - log_c[index]) <= _BUDGET_WIDTH / 2)
    chosen = near if near.any() else others
    sides = [steps[chosen & side] for side in (log_n < log_n[index], log_n > log_n[index])]
    known = [float(side.min()) for side in sides if len(side)]
    return sum(known) / len(known) if known else 0.0

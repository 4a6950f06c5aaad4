"""Approaches 1 and 2 of Hoffmann et al. 2022, as diagnostics beside the law: the envelope and the isoFLOP valleys.

Neither assumes how loss falls with compute. A valley, a sum of two powers of N (see `valley`), is fitted to each
budget; its minimum is that budget's optimum. It is refused, with the reason, unless it lies between sizes that were
tried: an optimum at an edge is no optimum.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flopsfit_ds.fit.forecast.valley import Valley, fit_valleys
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import Point, PointArrays
from flopsfit_ds.fit.points.selection import select_points

MIN_SIZES = 3  # a valley has three coefficients
_BUDGET_WIDTH = 0.25
"""E-folds. Of nine public tables the budgets of five are exact to 1e-3 and 0.2 to 0.5 apart; traced from a figure they
scatter, and a width of 0.1 loses 49 of 157 of those points."""
_STRAY_SHARE = 0.33
"""Of the largest group. On the same tables 0.5 leaves out whole budgets of eight; 0.2 takes groups of few points, which
lie between budgets, for budgets in five."""
_LEAST_GAP = 0.05
"""Compute of one budget differs by this much where tokens are rounded to few steps, or FLOPs depend on the shape."""
_SAME_SIZE = 0.01  # of ln N: below the steps of any grid, above what rounding does to a size
_FAR = 100.0  # of ln N: no such size
_GAP_IN_WIDTHS = 3.0  # between points drawn evenly, a gap thrice as wide as what lies on either side is rare


@dataclass(frozen=True)
class BudgetMinimum:
    """The valley of one budget, loss = e + a exp(-p x) + b exp(q x) with x = ln N - log_centre.

    Attributes:
        compute_flops: The budget (nominal, or the geometric mean of its points).
        computes: Smallest and largest compute of its points.
        num_points: Points in the budget.
        sizes: Smallest and largest number of parameters tried.
        log_centre: Origin of x.
        coefficients: (e, a, b), or None with fewer than three sizes.
        powers: (p, q), shared by all budgets; None with fewer than three sizes.
        num_params: The minimum N*, None where refused.
        num_tokens: D* there, None where refused.
        loss: Loss there, None where refused.
        log_num_params_standard_error: Standard error of ln N*, from the budget's own scatter about its valley, drawn to
            that of the others where it has few points; None where no budget has points to spare.
        log_loss_standard_error: Standard error of ln of the loss there, likewise.
        refused: Why there is no minimum, None where there is one.
    """

    compute_flops: float
    computes: tuple[float, float]
    num_points: int
    sizes: tuple[float, float]
    log_centre: float
    coefficients: tuple[float, float, float] | None
    powers: tuple[float, float] | None
    num_params: float | None
    num_tokens: float | None
    loss: float | None
    log_num_params_standard_error: float | None
    log_loss_standard_error: float | None
    refused: str | None

    def curve(self, num_params: FloatArray) -> FloatArray:
        """Loss of the valley at these sizes."""
        if self.coefficients is None or self.powers is None:
            return np.full(np.shape(num_params), np.nan)
        floor, fall, rise = self.coefficients
        x = np.log(num_params) - self.log_centre
        return floor + fall * np.exp(-self.powers[0] * x) + rise * np.exp(self.powers[1] * x)


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
        strays: Indices, among the usable points, of those that belong to no budget.
        stray_names: The same, by row and name.
    """

    budgets: tuple[BudgetMinimum, ...]
    size_law: PowerLaw | None
    envelope: tuple[int, ...]
    envelope_law: PowerLaw | None
    strays: tuple[int, ...]
    stray_names: tuple[str, ...]


def budget_groups(points: Sequence[Point]) -> list[list[int]]:
    """Indices of the points of each compute budget, by rising budget.

    Points of no budget are left out, see `split_budgets`.
    """
    return split_budgets(points)[0]


def split_budgets(points: Sequence[Point]) -> tuple[list[list[int]], list[int]]:
    """The budgets as `budget_groups` gives them, and the indices of the points that belong to none.

    Nominal budgets are used where every point has one. Otherwise sorted compute is cut at its widest gaps until no
    group spans more than a factor of 1.28; a group is cut further where its points lie in tight heaps, each with sizes
    enough for a valley of its own. Groups less than a third as large as the largest are taken for stray points.
    """
    if points and all(p.compute_budget_flops is not None for p in points):
        nominal: dict[float, list[int]] = {}
        for index, point in enumerate(points):
            nominal.setdefault(float(point.compute_budget_flops or 0.0), []).append(index)
        return [nominal[budget] for budget in sorted(nominal)], []
    log_c, log_n = np.log([p.compute_flops for p in points]), np.log([p.num_params for p in points])
    wide = _cut_at_gaps(np.argsort(log_c, kind="stable"), log_c)
    groups = [heap for group in wide for heap in _heaps(group, log_c, log_n)]
    most = max((len(group) for group in groups), default=0)
    kept = [group for group in groups if len(group) >= _STRAY_SHARE * most]
    return kept, [index for group in groups if len(group) < _STRAY_SHARE * most for index in group]


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
        if least < _LEAST_GAP:
            continue  # before any parts are made: most groups of a large table have no gap at all
        parts = [part.tolist() for part in np.split(np.array(group), np.sort(widest[:cuts]) + 1)]
        if least < _GAP_IN_WIDTHS * max(float(np.ptp(log_c[part])) for part in parts):
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
    """Valleys and envelope of the points; works where no law can be fitted.

    Unusable points (see `selection.select_points`) are left out.
    """
    usable = list(select_points(points).points)
    if not usable:
        return IsoflopDiagnostics((), None, (), None, (), ())
    arrays = PointArrays.of(usable)
    groups, strays = split_budgets(usable)
    budgets = _minima(usable, arrays, groups)
    envelope = _envelope(arrays)
    names = tuple(_name_of(usable[index]) for index in strays)
    return IsoflopDiagnostics(
        budgets, _size_law(budgets), envelope, _envelope_law(arrays, envelope), tuple(strays), names
    )


def _name_of(point: Point) -> str:
    name = point.label or point.run_id
    where = "a point" if point.row is None else f"row {point.row}"
    return where + (f" ({name})" if name else "")


def _minima(points: Sequence[Point], arrays: PointArrays, groups: Sequence[Sequence[int]]) -> tuple[BudgetMinimum, ...]:
    """One entry for each budget with more than one point."""
    log_n = np.log(arrays.num_params)
    shown = [list(group) for group in groups if len(group) > 1]
    centres = [float(log_n[group].mean()) for group in shown]
    broad = [k for k, group in enumerate(shown) if _distinct_sizes(log_n[group]) >= MIN_SIZES]
    valleys: dict[int, Valley] = {}
    if broad:
        sizes = [log_n[shown[k]] - centres[k] for k in broad]
        valleys = dict(zip(broad, fit_valleys(sizes, [arrays.loss[shown[k]] for k in broad]), strict=True))
    return tuple(
        _minimum(points[group[0]].compute_budget_flops, arrays, group, centres[k], valleys.get(k))
        for k, group in enumerate(shown)
    )


def _minimum(
    nominal: float | None, arrays: PointArrays, group: list[int], centre: float, valley: Valley | None
) -> BudgetMinimum:
    n, flops = arrays.num_params[group], arrays.flops[group]
    compute = float(np.exp(np.log(flops).mean())) if nominal is None else nominal
    sizes = (float(n.min()), float(n.max()))
    known = (compute, (float(flops.min()), float(flops.max())), len(n), sizes, centre)
    if valley is None:
        reason = f"{_distinct_sizes(np.log(n))} sizes; a valley needs at least {MIN_SIZES}"
        return BudgetMinimum(*known, None, None, None, None, None, None, None, reason)
    shape = (valley.floor, valley.fall, valley.rise), valley.powers
    reason = _refusal(valley, centre, float(n[int(arrays.loss[group].argmin())]), sizes)
    if reason is not None:
        return BudgetMinimum(*known, *shape, None, None, None, None, None, reason)
    num_params = math.exp(centre + valley.log_size)
    ratio = np.log(flops / (n * arrays.num_tokens[group]))
    per_pair = float(np.interp(math.log(num_params), np.sort(np.log(n)), ratio[np.argsort(n)]))
    num_tokens = compute / (math.exp(per_pair) * num_params)
    error = valley.loss_standard_error
    of_loss = None if error is None else error / valley.loss
    return BudgetMinimum(*known, *shape, num_params, num_tokens, valley.loss, valley.standard_error, of_loss, None)


def _refusal(valley: Valley, centre: float, best_size: float, sizes: tuple[float, float]) -> str | None:
    if not valley.curved:
        return "the losses do not curve upwards, so there is no minimum; try a wider range of sizes"
    at = centre + valley.log_size
    for edge, name, direction in ((sizes[0], "smallest", "smaller"), (sizes[1], "largest", "larger")):
        outside = at < math.log(edge) if name == "smallest" else at > math.log(edge)
        if outside or best_size == edge:
            where = f", the valley's bottom at {math.exp(at):.3g}" if abs(at) < _FAR else ""
            return (
                f"minimum at an edge: the {name} size tried ({edge:.3g}) is the best{where}; try {direction} sizes at "
                "this budget"
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

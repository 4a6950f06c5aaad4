"""Learning-rate and batch laws over a tuning grid: the best setting of every size and number of tokens, and its law.

Each (N, D) gives one optimum: the bottom of ln L over the logarithm of the setting, by a cubic through the best value
tried and two on either side (losses rise faster towards large rates, so that a parabola's bottom lies too low), or by a
parabola where there are fewer. With a batch as well, the best learning rate of each batch first, then the best batch.
Where the best value tried is the smallest or the largest, the optimum lies at the grid's edge or beyond: it is told,
and does not enter the law, which a bound would bend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flopsfit_ds.base.errors import DataError, FitError
from flopsfit_ds.fit.laws.further.tuning import PowerOfSizes, fit_power
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.columns import read_number
from flopsfit_ds.fit.points.points import Exclusion
from flopsfit_ds.fit.points.reading import load_points, read_column
from flopsfit_ds.fit.quantiles import student_quantile
from flopsfit_ds.fit.solve.intervals import Interval
from flopsfit_ds.spec.fit_options import DEFAULTS

LEARNING_RATE, BATCH = "learning_rate", "batch"
TOO_FEW = "too few values"
"""In the place of an edge: less than three values were tried, so that none lies between others."""
_SIDE = 2
"""Values on either side of the best that the curve is fitted to: further away rates that diverge bend it."""


@dataclass(frozen=True)
class TunedRun:
    """One run of the grid; batch is None where the table has none."""

    num_params: float
    num_tokens: float
    loss: float
    learning_rate: float
    batch: float | None = None


@dataclass(frozen=True)
class Optimum:
    """The best setting of one size and number of tokens.

    Attributes:
        num_params: N.
        num_tokens: D.
        best: By setting; the best value tried where the optimum lies at an edge.
        edges: Setting -> "lowest" or "highest" value tried, or "too few values", where it does not enter its law.
        runs: How many were looked at.
    """

    num_params: float
    num_tokens: float
    best: dict[str, float]
    edges: dict[str, str]
    runs: int


@dataclass(frozen=True, eq=False)
class TuningLaw:
    """The law of one setting.

    Attributes:
        setting: "learning_rate" or "batch".
        law: None where there are too few optima inside their grids.
        reason: Why there is none; empty where there is one.
        exponents: "N" and "D" -> exponent and its interval.
        num_inside: Optima inside their grids.
        level: Probability of the intervals.
    """

    setting: str
    law: PowerOfSizes | None
    reason: str
    exponents: dict[str, tuple[float, Interval]]
    num_inside: int
    level: float

    def predict(self, num_params: float, num_tokens: float) -> tuple[float, Interval]:
        """The best value by the law, and the interval of that.

        Raises:
            FitError: There is no law.
        """
        if self.law is None:
            raise FitError(f"no law of the {self.setting}: {self.reason}")
        centre, error = self.law.at(num_params, num_tokens)
        half = student_quantile(self.law.spare, 0.5 + 0.5 * self.level) * error
        return float(np.exp(centre)), Interval(float(np.exp(centre - half)), float(np.exp(centre + half)))


@dataclass(frozen=True, eq=False)
class TuningFit:
    """All optima and the laws through them.

    Attributes:
        optima: By size and tokens.
        laws: Of the learning rate, and of the batch where there is one.
    """

    optima: tuple[Optimum, ...]
    laws: tuple[TuningLaw, ...]


def read_tuned(
    path: str | Path, learning_rate: str, batch: str | None, columns: Mapping[str, str] | None = None
) -> tuple[tuple[TunedRun, ...], tuple[Exclusion, ...]]:
    """The runs of a tuning grid, and the rows left out.

    Args:
        path: The table.
        learning_rate: Its column, as the table spells it.
        batch: Likewise; None for none.
        columns: Quantity -> column for N, D, C and the loss, whose spelling is not a common one.

    Raises:
        DataError: The table cannot be read, has no such column, or no row can be used.
    """
    table = load_points(path, columns)
    names = [learning_rate] + ([] if batch is None else [batch])
    cells = [read_column(path, name) for name in names]
    runs: list[TunedRun] = []
    excluded = list(table.excluded)
    for point in table.points:
        row = point.row or 0
        values: list[float] = []
        for name, column in zip(names, cells, strict=True):
            try:
                value = read_number(column.get(row))
            except ValueError as error:
                excluded.append(Exclusion(row, point.label, f"column {name}: {error}"))
                break
            if value is None or not (np.isfinite(value) and value > 0):
                told = "is empty" if value is None else f"is {value:g}: it must be positive"
                excluded.append(Exclusion(row, point.label, f"column {name} {told}"))
                break
            values.append(value)
        if len(values) < len(names):
            continue
        if not (np.isfinite(point.loss) and point.loss > 0):
            excluded.append(Exclusion(row, point.label, f"loss {point.loss:g}"))
            continue
        runs.append(TunedRun(point.num_params, point.num_tokens, point.loss, *values))
    if not runs:
        raise DataError(f"{path}: no row has a loss and a value in {' and '.join(repr(name) for name in names)}")
    return tuple(runs), tuple(excluded)


def fit_tuning(runs: Sequence[TunedRun], *, level: float = DEFAULTS.level) -> TuningFit:
    """The optimum of every size and number of tokens, and the laws of the learning rate and the batch.

    Args:
        runs: Of the grid; all with a batch, or none.
        level: Probability of the intervals.

    Raises:
        FitError: No size was run at three learning rates, or the level is none.
    """
    if not 0.0 < level < 1.0:
        raise FitError(f"level must lie between 0 and 1, got {level}")
    groups: dict[tuple[float, float], list[TunedRun]] = {}
    for run in runs:
        groups.setdefault((round(np.log(run.num_params), 3), round(np.log(run.num_tokens), 3)), []).append(run)
    optima = tuple(_optimum(groups[key]) for key in sorted(groups))
    if all(optimum.edges.get(LEARNING_RATE) == TOO_FEW for optimum in optima):
        raise FitError(
            f"none of {len(optima)} pairs of N and D was run at three learning rates: an optimum needs one on either "
            "side of it; give rows that differ in the learning rate alone"
        )
    settings = [LEARNING_RATE] + [BATCH] * all(run.batch is not None for run in runs)
    return TuningFit(optima, tuple(_law(optima, setting, level) for setting in settings))


def _law(optima: Sequence[Optimum], setting: str, level: float) -> TuningLaw:
    inside = [optimum for optimum in optima if setting not in optimum.edges]
    columns = [np.array(c) for c in zip(*((o.num_params, o.num_tokens, o.best[setting]) for o in inside), strict=True)]
    law = fit_power(columns[0], columns[1], columns[2]) if inside else None
    if law is None:
        reason = f"{len(inside)} of {len(optima)} optima lie inside their grids, fewer than a law needs"
        return TuningLaw(setting, None, reason, {}, len(inside), level)
    factor = student_quantile(law.spare, 0.5 + 0.5 * level)
    exponents: dict[str, tuple[float, Interval]] = {}
    for name, value, error in zip(law.names[1:], law.theta[1:], np.sqrt(np.diag(law.covariance))[1:], strict=True):
        centre, half = float(value), factor * float(error)
        exponents[name] = centre, Interval(centre - half, centre + half)
    return TuningLaw(setting, law, "", exponents, len(inside), level)


def _optimum(runs: Sequence[TunedRun]) -> Optimum:
    """The best learning rate, and the best batch where runs differ in it, of one N and D."""
    by_batch: dict[float | None, list[TunedRun]] = {}
    for run in runs:
        by_batch.setdefault(run.batch, []).append(run)
    bottoms = [
        (batch, _bottom(np.array([run.learning_rate for run in own]), np.array([run.loss for run in own])))
        for batch, own in by_batch.items()
    ]
    batch, bottom = min(bottoms, key=lambda pair: pair[1][1])
    best, edges = {LEARNING_RATE: bottom[0]}, {} if not bottom[2] else {LEARNING_RATE: bottom[2]}
    if batch is not None:
        sizes, losses = np.array([float(size or 0.0) for size, _ in bottoms]), np.array([b[1] for _, b in bottoms])
        best[BATCH], _, edge = _bottom(sizes, losses)
        if edge or edges:
            edges[BATCH] = edge or f"learning rate at its {edges[LEARNING_RATE]}"
        elif all(not b[2] for _, b in bottoms):  # the rate at the best batch, between those of its neighbours
            order = np.argsort(sizes)
            rates = np.log([bottoms[k][1][0] for k in order])
            best[LEARNING_RATE] = float(np.exp(np.interp(np.log(best[BATCH]), np.log(sizes[order]), rates)))
    return Optimum(runs[0].num_params, runs[0].num_tokens, best, edges, len(runs))


def _bottom(values: FloatArray, losses: FloatArray) -> tuple[float, float, str]:
    """Where the loss is least over a setting, the loss there, and the edge it lies at; empty for none.

    Repeated values count with their mean.
    """
    tried = np.unique(values)
    log_loss = np.array([np.log(losses[values == value]).mean() for value in tried])
    least = int(log_loss.argmin())
    here = float(tried[least]), float(np.exp(log_loss[least]))
    if len(tried) < 3:
        return *here, TOO_FEW
    if least in (0, len(tried) - 1):
        return *here, "lowest" if least == 0 else "highest"
    near = slice(max(0, least - _SIDE), least + _SIDE + 1)
    x, y = np.log(tried[near]) - np.log(tried[least]), log_loss[near]
    low, high = np.log(tried[[least - 1, least + 1]]) - np.log(tried[least])
    valley = np.polynomial.Polynomial.fit(x, y, 3 if len(x) > 2 * _SIDE else 2).convert()
    inside = [float(root.real) for root in valley.deriv().roots() if root.imag == 0 and low <= root.real <= high]
    if not inside:
        return *here, ""
    at = min(inside, key=lambda root: float(valley(root)))
    return float(tried[least] * np.exp(at)), float(np.exp(valley(at))), ""

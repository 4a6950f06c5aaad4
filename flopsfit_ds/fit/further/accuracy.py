"""A law of two steps: runs give a law of the loss, losses give a task's accuracy, and both errors reach the forecast.

The form of the second step is chosen as those with a further column are: runs are put in order of falling loss, each
form is fitted to the first of them and judged on the later, better ones.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.further.held_out import HeldOut, chosen_form
from flopsfit_ds.fit.laws.further.accuracy import Sigmoid
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import Point
from flopsfit_ds.fit.quantiles import normal_quantile
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.fit.scaling import fit_scaling_law
from flopsfit_ds.fit.solve.intervals import Interval
from flopsfit_ds.spec.fit_options import DEFAULTS

_FITTED = 6
"""Runs that a form is fitted to, at least: three more than it has parameters."""
_SAMPLES = 400
"""Resamples: the ends of a 90% interval are then the 20th value from either side."""
_ORIGINS = (0.5, 0.6, 0.7, 0.8)
"""Shares of the runs that are seen, as rolling origins; each then looks at the rest in halves."""
_ABOVE_CHANCE = 3.0
"""Of the scatter of runs: a task whose best run is nearer to chance has not begun to rise, and says nothing yet."""


@dataclass(frozen=True)
class FormOfAccuracy:
    """One form, fitted to all runs and judged on better ones.

    Attributes:
        name: Of the form.
        formula: In words.
        source: Where it comes from.
        residual: Standard deviation of the accuracy about the fit to all runs.
        held_out_error: Mean size of the error on better runs.
        parameters: L0 and k are in the units of the loss. They have no intervals: a ceiling that runs do not show
            shifts both by more than resamples tell, while predictions are judged on better runs.
    """

    name: str
    formula: str
    source: str
    residual: float
    held_out_error: float
    parameters: dict[str, float]


@dataclass(frozen=True)
class AccuracyPrediction:
    """Accuracy of a run to come.

    Attributes:
        accuracy: The centre.
        interval: Of one run.
        loss: What the first step says.
        loss_interval: At the same level.
    """

    accuracy: float
    interval: Interval
    loss: float
    loss_interval: Interval


@dataclass(frozen=True, eq=False)
class AccuracyFit:
    """Both steps.

    Attributes:
        loss_fit: The first.
        forms: Of the second, the simplest first.
        chosen: The form to go by.
        why: How it was chosen.
        chance: Accuracy of guessing.
        level: Probability of the intervals.
        num_points: Runs.
    """

    loss_fit: ScalingFit
    forms: tuple[FormOfAccuracy, ...]
    chosen: str
    why: str
    chance: float
    level: float
    num_points: int
    form: Sigmoid
    theta: FloatArray
    draws: FloatArray
    held_out: HeldOut
    best_loss: float
    seed: int

    def predict(
        self, compute: float | None = None, *, num_params: float | None = None, num_tokens: float | None = None
    ) -> AccuracyPrediction:
        """Accuracy at the optimum of a budget, or at a size and a number of tokens.

        Raises:
            FitError: The first step has no answer.
        """
        told = self.loss_fit.predict(compute, num_params=num_params, num_tokens=num_tokens, level=self.level)
        rng = np.random.default_rng(self.seed)
        log_loss, sides = math.log(told.loss), rng.standard_normal(len(self.draws))
        width = _normal_width(self.level)
        up = (math.log(told.interval.high) - log_loss) / width
        down = (log_loss - math.log(told.interval.low)) / width
        losses = np.exp(log_loss + np.where(sides > 0, up, down) * sides)
        residual = next(form.residual for form in self.forms if form.name == self.chosen)
        ahead = max(0.0, self.best_loss - told.loss)
        grown = self.held_out.error_at(self.chosen, ahead)
        noise = math.hypot(residual, grown) * rng.standard_normal(len(self.draws))
        values = np.clip(self.form.accuracy(self.draws, losses) + noise, 0.0, 1.0)
        centre = float(self.form.accuracy(self.theta, np.array(told.loss)))
        low, high = np.quantile(values, [0.5 - 0.5 * self.level, 0.5 + 0.5 * self.level])
        interval = Interval(min(centre, float(low)), max(centre, float(high)))
        return AccuracyPrediction(centre, interval, told.loss, told.interval)

    def to_json_dict(self) -> dict[str, Any]:
        """Plain JSON: what the attributes say, without the working."""
        return {
            "format": "flopsfit-ds.accuracy-fit",
            "version": 1,
            "chosen": self.chosen,
            "why": self.why,
            "chance": self.chance,
            "level": self.level,
            "num_points": self.num_points,
            "forms": [asdict(form) for form in self.forms],
        }


def fit_accuracy(
    points: Sequence[Point],
    accuracies: Sequence[float],
    chance: float,
    *,
    level: float = DEFAULTS.level,
    bootstrap_samples: int = _SAMPLES,
    seed: int = DEFAULTS.seed,
) -> AccuracyFit:
    """Fit a law of the loss, and the accuracy of a task as a sigmoid of the loss.

    Args:
        points: The runs, with their held-out losses.
        accuracies: Of the task, one for each run, between 0 and 1.
        chance: Accuracy of guessing: 0.25 of four choices, 0 of free answers.
        level: Probability of the intervals.
        bootstrap_samples: Resamples of runs.
        seed: Of the resampling.

    Raises:
        FitError: Values outside 0 to 1, too few runs, accuracies at chance throughout, or no law of the loss.
    """
    seen, loss = _checked(points, accuracies, chance, level)
    forms = (Sigmoid(chance, own_ceiling=False), Sigmoid(chance, own_ceiling=True))
    ends = {form.name: _fit(form, loss, seen) for form in forms}
    residuals = {form.name: _residual(form, ends[form.name], loss, seen) for form in forms}
    held = _hold_out(forms, loss, seen)
    chosen, why = chosen_form(held, {form.name: len(form.parameter_names) for form in forms})
    best = next(form for form in forms if form.name == chosen)
    lift = float(seen[np.argsort(loss)[:3]].mean()) - chance
    if lift < _ABOVE_CHANCE * residuals[best.name]:
        raise FitError(
            f"the three best runs are {lift:+.1%} off chance, where runs scatter by {residuals[best.name]:.1%}: this "
            "task has not begun to rise; train further, or take a metric that moves earlier (such as the loss of the "
            "right answer)"
        )
    theta = ends[best.name]
    draws = _resampled(best, theta, loss, seen, bootstrap_samples, seed)
    told = tuple(
        FormOfAccuracy(
            form.name,
            form.formula,
            form.source,
            residuals[form.name],
            held.errors[form.name],
            dict(zip(form.parameter_names, map(float, ends[form.name]), strict=True)),
        )
        for form in forms
    )
    loss_fit = fit_scaling_law(points, level=level, bootstrap_samples=min(200, bootstrap_samples), diagnostics=False)
    return AccuracyFit(
        loss_fit, told, best.name, why, chance, level, len(seen), best, theta, draws, held, float(loss.min()), seed
    )


def _checked(
    points: Sequence[Point], accuracies: Sequence[float], chance: float, level: float
) -> tuple[FloatArray, FloatArray]:
    if len(points) != len(accuracies):
        raise FitError(f"{len(accuracies)} accuracies for {len(points)} runs: one for each is needed")
    if not 0.0 <= chance < 1.0:
        raise FitError(f"chance is an accuracy between 0 and 1, got {chance:g}; 0.25 of four choices")
    if not 0.0 < level < 1.0:
        raise FitError(f"level must lie between 0 and 1, got {level}")
    seen = np.array(accuracies, dtype=np.float64)
    if not (np.isfinite(seen).all() and (seen >= 0.0).all() and (seen <= 1.0).all()):
        raise FitError(
            f"accuracies run from {seen.min():g} to {seen.max():g}: they lie between 0 and 1; divide per cent by 100"
        )
    if len(seen) <= _FITTED:
        raise FitError(
            f"{len(seen)} runs: {_FITTED} are fitted at least and better ones judge; {_FITTED + 1} are needed"
        )
    return seen, np.array([point.loss for point in points], dtype=np.float64)


def _fit(form: Sigmoid, loss: FloatArray, seen: FloatArray, start: FloatArray | None = None) -> FloatArray:
    """Least squares, from each start; the best end."""
    from scipy.optimize import least_squares

    lower, upper = form.bounds(loss)
    starts = form.starts(loss, seen) if start is None else np.clip(start[None], lower + 1e-9, upper - 1e-9)
    ends = [
        least_squares(lambda theta: form.accuracy(theta, loss) - seen, each, bounds=(lower, upper), x_scale="jac")
        for each in starts
    ]
    return min(ends, key=lambda end: end.cost).x


def _residual(form: Sigmoid, theta: FloatArray, loss: FloatArray, seen: FloatArray) -> float:
    spare = max(1, len(seen) - len(theta))
    return math.sqrt(float(((form.accuracy(theta, loss) - seen) ** 2).sum()) / spare)


def _hold_out(forms: Sequence[Sigmoid], loss: FloatArray, seen: FloatArray) -> HeldOut:
    order = np.argsort(-loss, kind="stable")
    counts = sorted({max(_FITTED, round(share * len(order))) for share in _ORIGINS})
    cells: dict[str, list[float]] = {form.name: [] for form in forms}
    distances: list[float] = []
    judged = 0
    for count in (count for count in counts if count < len(order)):
        known, ahead = order[:count], order[count:]
        parts = [part for part in np.array_split(ahead, 2) if len(part)]
        distances += [float(loss[known].min() - loss[part].mean()) for part in parts]
        judged += len(ahead)
        for form in forms:
            theta = _fit(form, loss[known], seen[known])
            cells[form.name] += [float(np.abs(form.accuracy(theta, loss[part]) - seen[part]).mean()) for part in parts]
    arrays = {name: np.array(values) for name, values in cells.items()}
    means = {name: float(values.mean()) for name, values in arrays.items()}
    return HeldOut(means, arrays, np.maximum(np.array(distances), 1e-3), judged)


def _resampled(
    form: Sigmoid, theta: FloatArray, loss: FloatArray, seen: FloatArray, samples: int, seed: int
) -> FloatArray:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, len(seen), len(seen)) for _ in range(samples)]
    return np.array([_fit(form, loss[row], seen[row], theta) for row in rows if np.ptp(loss[row]) > 0])


def _normal_width(level: float) -> float:
    return normal_quantile(0.5 + 0.5 * level)

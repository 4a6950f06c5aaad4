"""Forms of law with a further column, compared by how they forecast runs they have not seen.

Origins roll over the compute of the runs, as for `forecast.ensemble`: each form is fitted to the runs up to an origin
and judged on all later ones. Of the forms whose held-out error is within one standard error of the lowest, the one with
the fewest parameters is chosen (the one-standard-error rule, Breiman et al. 1984): a form is never chosen for its fit.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.forecast.parts.members import origins_of, seen_at
from flopsfit_ds.fit.forecast.rolling import compute_groups
from flopsfit_ds.fit.further.held_out import HeldOut, chosen_form, held_out_errors
from flopsfit_ds.fit.further.kinds import Kind, column_kind
from flopsfit_ds.fit.laws.base import Inputs, Law
from flopsfit_ds.fit.losses import FloatArray, make_loss
from flopsfit_ds.fit.points.points import Point, PointArrays
from flopsfit_ds.fit.quantiles import student_quantile
from flopsfit_ds.fit.solve.bootstrap import bootstrap_fits
from flopsfit_ds.fit.solve.certificate import CertifiedFit, certified_fit
from flopsfit_ds.fit.solve.covariance import run_noise
from flopsfit_ds.fit.solve.intervals import Interval, percentile_interval, student_factor
from flopsfit_ds.fit.solve.solver import Problem
from flopsfit_ds.spec.fit_options import DEFAULTS

_SPARE = 2
"""Points more than parameters, as the ensemble asks."""
_SAMPLES = 400
"""Resamples: the ends of a 90% interval are then the 20th value from either side."""


@dataclass(frozen=True)
class FormOfColumn:
    """One form, fitted to all runs and judged on runs held out.

    Attributes:
        name: Of the form.
        formula: In words.
        source: Where it comes from.
        num_parameters: Fitted parameters.
        residual: Standard deviation of ln L about the fit to all runs; not what forms are chosen by.
        held_out_error: Mean size of the error of ln L of runs held out; None where nothing could be held out.
        parameters: In the units of the data.
        intervals: Of the parameters, at the level asked for; empty without resamples.
        at_bound: Parameters that ended on a bound: the runs do not determine them.
    """

    name: str
    formula: str
    source: str
    num_parameters: int
    residual: float
    held_out_error: float | None
    parameters: dict[str, float]
    intervals: dict[str, Interval]
    at_bound: tuple[str, ...]


@dataclass(frozen=True)
class ColumnPrediction:
    """Loss of a run to come by the chosen form.

    Attributes:
        loss: The centre.
        interval: Of one run; it lies about the centre.
        extrapolation: Compute over the largest that was trained.
        rests_on: What the width is made of.
    """

    loss: float
    interval: Interval
    extrapolation: float
    rests_on: str


@dataclass(frozen=True, eq=False)
class ColumnFit:
    """The forms that a further column allows, and the one to go by.

    Attributes:
        kind: What the column holds.
        forms: The simplest first.
        chosen: Name of the form to go by; None where nothing could be held out, and then none is chosen by its fit.
        why: How it was chosen, with the numbers.
        skipped: Form -> why it could not be fitted.
        groups: Names of the families, in the order of the numbers in names of parameters; empty for other kinds.
        level: Probability of the intervals.
        num_points: Runs fitted.
        largest_compute: FLOPs.
    """

    kind: Kind
    forms: tuple[FormOfColumn, ...]
    chosen: str | None
    why: str
    skipped: dict[str, str]
    groups: tuple[str, ...]
    level: float
    num_points: int
    largest_compute: float
    fits: "dict[str, _Fitted]"
    held_out: HeldOut | None

    def predict(self, num_params: float, num_tokens: float, value: float | str) -> ColumnPrediction:
        """Loss at a size, a number of tokens and a value of the column.

        Args:
            num_params: N, active parameters for a mixture of experts.
            num_tokens: D.
            value: Total parameters, bits, or the name of a family.

        Raises:
            FitError: No form was chosen, or the value means nothing to it.
        """
        if self.chosen is None:
            raise FitError(f"no form can be gone by: {self.why}")
        if not (math.isfinite(num_params) and num_params > 0 and math.isfinite(num_tokens) and num_tokens > 0):
            raise FitError(f"N and D must be positive and finite, got {num_params:g} and {num_tokens:g}")
        fitted = self.fits[self.chosen]
        column = self.kind.one(value, num_params, self.groups)
        at = fitted.problem.inputs.at(np.log([num_params]), np.log([num_tokens]))
        at = Inputs(at.n, at.d, at.centre_n, at.centre_d, column=np.array([column]))
        law = fitted.problem.law
        centre = float(law.log_loss(fitted.fit.theta[None], at)[0, 0])
        spread = float(law.log_loss(fitted.draws, at)[:, 0].std(ddof=1)) if len(fitted.draws) else 0.0
        distance = math.log(6.0 * num_params * num_tokens / self.largest_compute)
        grown = self.held_out.error_at(self.chosen, max(0.0, distance)) if self.held_out is not None else 0.0
        spare = max(1, self.num_points - law.num_parameters)
        half = student_quantile(spare, 0.5 + 0.5 * self.level) * math.sqrt(spread**2 + fitted.noise**2 + grown**2)
        parts = ["the noise of a run"] + ["resamples"] * (len(fitted.draws) > 0)
        parts += ["how fast forecasts of held-out runs went wrong"] * (grown > 0)
        interval = Interval(math.exp(centre - half), math.exp(centre + half))
        return ColumnPrediction(math.exp(centre), interval, math.exp(distance), ", ".join(parts))

    def to_json_dict(self) -> dict[str, Any]:
        """Plain JSON: what the attributes say, without the working."""
        return {
            "format": "flopsfit-ds.column-fit",
            "version": 1,
            "kind": self.kind.name,
            "chosen": self.chosen,
            "why": self.why,
            "level": self.level,
            "num_points": self.num_points,
            "groups": list(self.groups),
            "skipped": self.skipped,
            "forms": [_finite(asdict(form)) for form in self.forms],
        }


@dataclass(frozen=True, eq=False)
class _Fitted:
    problem: Problem
    fit: CertifiedFit
    noise: float
    draws: FloatArray


def fit_column(
    points: Sequence[Point],
    values: Sequence[float | str],
    kind: str,
    *,
    level: float = DEFAULTS.level,
    bootstrap_samples: int = _SAMPLES,
    seed: int = DEFAULTS.seed,
) -> ColumnFit:
    """Fit every form that a further column allows, and choose by error on runs held out.

    Args:
        points: The runs; N counts active parameters for a mixture of experts.
        values: Of the column, one for each run.
        kind: "family" (any names), "total-params" (mixtures of experts) or "bits" (of the weights in training).
        level: Probability of the intervals.
        bootstrap_samples: Resamples of runs for the chosen form; 0 for none.
        seed: Of the resampling.

    Raises:
        FitError: An unknown kind, values that mean nothing to it, a column that never varies, or too few runs.
    """
    if len(points) != len(values):
        raise FitError(f"{len(values)} values of the column for {len(points)} runs: one for each is needed")
    if not 0.0 < level < 1.0:
        raise FitError(f"level must lie between 0 and 1, got {level}")
    what = column_kind(kind)
    arrays = PointArrays.of(points)
    column, groups = what.column(values, arrays.num_params)
    fits: dict[str, _Fitted] = {}
    skipped: dict[str, str] = {}
    for law in what.laws(len(groups)):
        try:
            fits[law.name] = _fit(law, arrays, column)
        except FitError as error:
            skipped[law.name] = str(error)
    if not fits:
        raise FitError("no form can be fitted: " + "; ".join(f"{name}: {why}" for name, why in skipped.items()))
    held = _hold_out(points, arrays, fits, column if groups else None)
    chosen, why = chosen_form(held, {name: fitted.problem.law.num_parameters for name, fitted in fits.items()})
    if chosen is not None and bootstrap_samples:
        fits[chosen] = _resampled(fits[chosen], bootstrap_samples, seed)
    forms = tuple(_form(fitted, held, level) for fitted in fits.values())
    largest = float((6.0 * arrays.num_params * arrays.num_tokens).max())
    return ColumnFit(what, forms, chosen, why, skipped, groups, level, len(points), largest, fits, held)


def _fit(law: Law, arrays: PointArrays, column: FloatArray) -> _Fitted:
    if len(arrays.loss) < law.num_parameters + _SPARE:
        raise FitError(f"{len(arrays.loss)} runs for {law.num_parameters} parameters")
    inputs = Inputs.centred(arrays.num_params, arrays.num_tokens)
    inputs = Inputs(inputs.n, inputs.d, inputs.centre_n, inputs.centre_d, column=column)
    none = np.zeros(0)
    loss = make_loss(DEFAULTS.loss, DEFAULTS.huber_delta)
    problem = Problem(law, inputs, np.log(arrays.loss), loss, none, none).under(law)
    fit = certified_fit(problem)
    residuals = law.log_loss(fit.theta[None], inputs)[0] - problem.log_loss
    return _Fitted(problem, fit, run_noise(residuals, law.num_parameters), np.zeros((0, law.num_parameters)))


def _resampled(fitted: _Fitted, samples: int, seed: int) -> _Fitted:
    problem, fit = fitted.problem, fitted.fit
    clusters = np.arange(len(problem.log_loss))
    draws = bootstrap_fits(problem, fit.theta, fit.starts, clusters, DEFAULTS.bootstrap, samples, seed)
    return _Fitted(problem, fit, fitted.noise, draws.theta)


def _hold_out(
    points: Sequence[Point], arrays: PointArrays, fits: dict[str, _Fitted], families: FloatArray | None
) -> HeldOut | None:
    groups = compute_groups(points, arrays)
    most = max(fitted.problem.law.num_parameters for fitted in fits.values())
    origins = [o for o in origins_of(groups) if len(seen_at(groups, o)) >= most + _SPARE]
    if not origins:
        return None
    log_compute = np.log(arrays.flops)
    return held_out_errors(
        {name: (f.problem, f.fit) for name, f in fits.items()}, groups, origins, log_compute, families
    )


def _form(fitted: _Fitted, held: HeldOut | None, level: float) -> FormOfColumn:
    problem, fit = fitted.problem, fitted.fit
    law = problem.law
    values = {name: float(value[0]) for name, value in law.natural(fit.theta[None], problem.inputs).items()}
    intervals: dict[str, Interval] = {}
    if len(fitted.draws):
        factor = student_factor(len(problem.log_loss) - law.num_parameters, level)
        for name, drawn in law.natural(fitted.draws, problem.inputs).items():
            positive = name.split("_")[0] in ("A", "B")
            intervals[name] = percentile_interval(values[name], drawn, level, factor, positive)
    error = None if held is None else held.errors[law.name]
    bounds = fit.certificate.active_bounds
    return FormOfColumn(
        law.name, law.formula, law.source, law.num_parameters, fitted.noise, error, values, intervals, bounds
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

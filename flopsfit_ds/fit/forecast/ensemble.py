"""The ensemble behind calibrated predictions.

Method. Every form of law that the points can carry is fitted and resampled. A form's weight is that of its profiled
quasi-likelihood with the penalty of BIC (Schwarz 1978; Burnham and Anderson 2002, section 6.4). The rolling origin says
how large past errors of extrapolation were against what the resamples promised; that factor scales the spread of every
form's resamples and, squared, flattens the weights where it is above one, as overdispersion does in QAIC (ibid., 2.5).
The prediction interval holds quantiles of the weighted resamples plus the noise between runs.

It assumes that the truth is near one of the forms, or that errors beyond the data grow as errors within it did; that
runs to come are made as the runs at hand were; and that their noise does not shrink with compute.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.forecast.prediction import FormDraws, PredictionModel
from flopsfit_ds.fit.forecast.rolling import Extrapolation, roll
from flopsfit_ds.fit.laws.registry import LAWS, get_law
from flopsfit_ds.fit.losses import FloatArray, LossFunction
from flopsfit_ds.fit.points.points import PointArrays
from flopsfit_ds.fit.solve.bootstrap import Draws, bootstrap_fits
from flopsfit_ds.fit.solve.certificate import CertifiedFit, certified_fit
from flopsfit_ds.fit.solve.covariance import asymptotic_covariance, run_noise
from flopsfit_ds.fit.solve.solver import Problem

_KEPT_DRAWS = 200
_PRIOR_LOOKS = 2.0
_MOST_SURPRISE = 25.0
_WIDEST_FACTOR = 6.0
_NARROWEST_FACTOR = 0.85  # resampled points overstate the spread of a Huber fit of 40 points by about that
_SPARE = 2
_SMALLEST_WEIGHT = 1e-6


@dataclass(frozen=True, eq=False)
class FormFit:
    """One form fitted to all points.

    Attributes:
        problem: The points under this form.
        fit: Its certified fit.
        draws: (samples, parameters), its resampled fits.
        noise: Standard deviation of ln L about it.
        log_likelihood: Profiled quasi-likelihood, penalised.
        extrapolations: Its rolling origin.
        weight: Its share of the ensemble.
    """

    problem: Problem
    fit: CertifiedFit
    draws: FloatArray
    noise: float
    log_likelihood: float
    extrapolations: tuple[Extrapolation, ...]
    weight: float = math.nan


@dataclass(frozen=True, eq=False)
class Ensemble:
    """All forms, the fitted one first, and the factor from the rolling origin.

    Attributes:
        forms: Weights sum to one.
        factor: Past errors of extrapolation over what was promised, from 0.85 to 6.
        skipped: Form -> why it is not in the ensemble.
    """

    forms: tuple[FormFit, ...]
    factor: float
    skipped: dict[str, str]

    def model(self, arrays: PointArrays, rule: ComputeRule, level: float) -> PredictionModel:
        """The prediction model."""
        first = self.forms[0]
        noise = math.sqrt(sum(f.weight * f.noise**2 for f in self.forms))
        kept = [f for k, f in enumerate(self.forms) if k == 0 or f.weight > _SMALLEST_WEIGHT]
        return PredictionModel(
            forms=tuple(FormDraws(f.problem.law.name, f.weight, f.fit.theta, f.draws[:_KEPT_DRAWS]) for f in kept),
            centre_n=first.problem.inputs.centre_n,
            centre_d=first.problem.inputs.centre_d,
            rule=rule,
            noise=noise,
            spread=self.factor,
            largest_compute=float(arrays.flops.max()),
            level=level,
        )


def build_ensemble(
    problem: Problem,
    fit: CertifiedFit,
    draws: Draws | None,
    groups: Sequence[Sequence[int]],
    arrays: PointArrays,
    clusters: np.ndarray,
    seed: int,
    other_forms: bool,
) -> Ensemble:
    """Fit and resample every form that the points can carry, and weigh them.

    Args:
        problem: The points under the form that was asked for.
        fit: Its fit.
        draws: Its resamples; None means normal draws from its asymptotic covariance, for all forms.
        groups: Points by rising compute, from `rolling.compute_groups`.
        arrays: The points.
        clusters: For the bootstrap.
        seed: For the bootstrap.
        other_forms: False leaves the fitted form alone in the ensemble.
    """
    log_compute = np.log(arrays.flops)
    own = None if draws is None else draws.theta
    forms = [_form_fit(problem, fit, own, groups, log_compute, seed)]
    skipped: dict[str, str] = {}
    names = [n for n in LAWS if n != problem.law.name] if other_forms else []
    for name in names:
        law = get_law(name)
        if name == "data-constrained" and arrays.unique_tokens is None:
            continue
        if len(arrays.loss) < law.num_parameters + _SPARE:
            skipped[name] = f"{len(arrays.loss)} points for {law.num_parameters} parameters"
            continue
        lower, upper = law.bounds(problem.log_loss)
        other = problem._replace(law=law, lower=lower, upper=upper)
        try:
            found = certified_fit(other)
            sampled = None if draws is None else _resample(other, found, draws.kind, clusters, seed)
        except FitError as error:
            skipped[name] = str(error)
            continue
        forms.append(_form_fit(other, found, sampled, groups, log_compute, seed))
    return _weighted(forms, skipped)


def _resample(problem: Problem, fit: CertifiedFit, kind: str, clusters: np.ndarray, seed: int) -> FloatArray:
    drawn = bootstrap_fits(problem, fit.theta, fit.starts, clusters, kind, _KEPT_DRAWS, seed).theta
    if len(drawn) < _KEPT_DRAWS // 2:
        raise FitError(f"{_KEPT_DRAWS - len(drawn)} of {_KEPT_DRAWS} resampled fits did not converge")
    return drawn


def _form_fit(
    problem: Problem,
    fit: CertifiedFit,
    draws: FloatArray | None,
    groups: Sequence[Sequence[int]],
    log_compute: FloatArray,
    seed: int,
) -> FormFit:
    residuals = problem.law.log_loss(fit.theta[None], problem.inputs)[0] - problem.log_loss
    count, size = len(residuals), problem.law.num_parameters
    noise = run_noise(residuals, size)
    if draws is None:
        everyone = np.ones(count, dtype=bool)
        scale = noise if problem.loss.on_log else noise * float(np.exp(problem.log_loss).mean())
        covariance = asymptotic_covariance(problem, fit.theta, everyone, scale)
        rng = np.random.default_rng(seed)
        draws = rng.multivariate_normal(fit.theta, covariance, size=_KEPT_DRAWS, method="eigh")
        draws = np.clip(draws, problem.lower, problem.upper)
    likelihood = quasi_log_likelihood(problem.loss, fit.objective, count) - 0.5 * size * math.log(count)
    rolled = tuple(roll(problem, fit.theta, groups, log_compute)) if len(groups) > 2 else ()
    return FormFit(problem, fit, draws, noise, likelihood, rolled)


def quasi_log_likelihood(loss: LossFunction, objective: float, count: int) -> float:
    """Log likelihood of residuals with density proportional to exp(-score/tau), at the best tau.

    With an infinite delta this is the normal likelihood, with a delta far below the residuals the Laplace one.
    """
    least = 1e-24 * count
    tau = np.geomspace(1e-3, 1e3, 600) * max(objective, least) / count
    root = np.sqrt(tau)
    if math.isfinite(loss.delta):
        from scipy.special import erf

        inside = np.sqrt(2 * np.pi) * root * erf(loss.delta / (math.sqrt(2.0) * root))
        mass = inside + 2.0 * tau / loss.delta * np.exp(-0.5 * loss.delta**2 / tau)
    else:
        mass = np.sqrt(2 * np.pi) * root
    return -float((max(objective, least) / tau + count * np.log(mass)).min())


def _weighted(forms: list[FormFit], skipped: dict[str, str]) -> Ensemble:
    """Weights and factor, each computed once with the other's first value."""
    likelihood = np.array([f.log_likelihood for f in forms])
    factor, weights = 1.0, np.ones(len(forms))
    for _ in range(2):
        weights = np.exp((likelihood - likelihood.max()) / max(1.0, factor) ** 2)
        weights /= weights.sum()
        factor = _surprise(forms, weights)
    weights = np.exp((likelihood - likelihood.max()) / max(1.0, factor) ** 2)
    weights /= weights.sum()
    done = tuple(replace(f, weight=float(w)) for f, w in zip(forms, weights, strict=True))
    return Ensemble(done, factor, skipped)


def _surprise(forms: Sequence[FormFit], weights: FloatArray) -> float:
    """Root mean square of past errors over what was promised, shrunk towards one."""
    total, looks = _PRIOR_LOOKS, _PRIOR_LOOKS
    for form, weight in zip(forms, weights, strict=True):
        for look in form.extrapolations:
            promised = look.spread**2 + look.noise**2 / look.num_points
            total += float(weight) * min(_MOST_SURPRISE, look.bias**2 / max(promised, 1e-300))
            looks += float(weight)
    return min(_WIDEST_FACTOR, max(_NARROWEST_FACTOR, math.sqrt(total / looks)))

"""All diagnostics of one fit, in one record."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.checks.diagnostics import (
    DeltaRefit,
    LearningRates,
    ResidualTrend,
    Suspect,
    Target,
    condition_number,
    delta_refits,
    learning_rate_edges,
    residual_trends,
    suspects,
    tokens_scatter,
    two_modes,
)
from flopsfit_ds.fit.forecast.ensemble import Ensemble, FormFit
from flopsfit_ds.fit.forecast.rolling import asymptotic_covariance
from flopsfit_ds.fit.points.points import Point, PointArrays
from flopsfit_ds.fit.solve.bootstrap import Draws
from flopsfit_ds.fit.solve.certificate import CertifiedFit
from flopsfit_ds.fit.solve.likelihood import Profile, profile_likelihood
from flopsfit_ds.fit.solve.solver import Problem

_HELD_OUT = 0.3


@dataclass(frozen=True)
class FormScore:
    """One form of law, judged by the back-test.

    Attributes:
        law: the form.
        weight: its share of the ensemble of predictions.
        num_parameters: parameters.
        objective: summed score on all points.
        noise: standard deviation of the residuals.
        backtest_rms: root mean square of ln(predicted / observed) on the budgets held out; None without a back-test.
        backtest_bias: mean of the same.
        log_loss_at_target: predicted ln L at the target.
    """

    law: str
    weight: float
    num_parameters: int
    objective: float
    noise: float
    backtest_rms: float | None
    backtest_bias: float | None
    log_loss_at_target: float


@dataclass(frozen=True)
class Backtest:
    """The fitted form on the top budgets, fitted without them.

    Attributes:
        origin_compute: largest budget that was seen.
        held_out_computes: budgets that were predicted.
        bias: mean of ln(predicted / observed) on each of them.
        expected: standard error of that mean that the fit promised: delta method and noise.
        rms: root mean square over all points held out.
    """

    origin_compute: float
    held_out_computes: tuple[float, ...]
    bias: tuple[float, ...]
    expected: tuple[float, ...]
    rms: float


@dataclass(frozen=True)
class Diagnostics:
    """What could be wrong with a fit.

    Attributes:
        backtest: None with fewer than three budgets, or too few points on the lower ones.
        forms: forms of law ranked by the back-test, then by objective.
        skipped_forms: form -> why it could not be fitted.
        rolling_factor: past errors of extrapolation over what was promised, from 0.85 to 6.
        condition_number: of J^T J with columns of unit length.
        tokens_scatter: standard deviation of ln D about its regression on ln N; near nought on a single ray.
        delta_refits: refits with other deltas.
        residual_trends: trends of the residuals.
        suspects: points with large residuals or leverage, with the fit without each.
        learning_rates: where several were tried.
        profiles: profile likelihood of each parameter.
        two_modes: quantity -> centres of two heaps of its resampled values.
    """

    backtest: Backtest | None
    forms: tuple[FormScore, ...]
    skipped_forms: dict[str, str]
    rolling_factor: float
    condition_number: float
    tokens_scatter: float
    delta_refits: tuple[DeltaRefit, ...]
    residual_trends: tuple[ResidualTrend, ...]
    suspects: tuple[Suspect, ...]
    learning_rates: LearningRates
    profiles: tuple[Profile, ...]
    two_modes: dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class FitMaterial:
    """What the diagnostics look at: a fit, its points and its ensemble."""

    problem: Problem
    fit: CertifiedFit
    draws: Draws | None
    ensemble: Ensemble
    groups: Sequence[Sequence[int]]
    points: Sequence[Point]
    all_points: Sequence[Point]
    arrays: PointArrays
    target: Target
    level: float


def run_diagnostics(material: FitMaterial) -> Diagnostics:
    """Run every diagnostic."""
    problem, fit, first = material.problem, material.fit, material.ensemble.forms[0]
    residuals = problem.law.log_loss(fit.theta[None], problem.inputs)[0] - problem.log_loss
    everyone = np.ones(len(residuals), dtype=bool)
    scale = first.noise if problem.loss.on_log else first.noise * float(np.exp(problem.log_loss).mean())
    spreads = np.sqrt(np.maximum(0.0, np.diag(asymptotic_covariance(problem, fit.theta, everyone, scale))))
    return Diagnostics(
        backtest=_backtest(first, material),
        forms=_ranked(material),
        skipped_forms=material.ensemble.skipped,
        rolling_factor=material.ensemble.factor,
        condition_number=condition_number(problem, fit),
        tokens_scatter=tokens_scatter(problem),
        delta_refits=delta_refits(problem, fit, material.target),
        residual_trends=residual_trends(material.arrays, residuals, problem.law.num_parameters),
        suspects=suspects(problem, fit, material.points, residuals, first.noise, material.target),
        learning_rates=learning_rate_edges(material.all_points),
        profiles=profile_likelihood(problem, fit, scale, spreads, material.level),
        two_modes=_heaps(material),
    )


def _origin(form: FormFit, groups: Sequence[Sequence[int]]) -> int | None:
    """The origin that leaves about the top third of the budgets, at least one, to be predicted."""
    held = max(1, round(_HELD_OUT * len(groups)))
    origins = {look.origin for look in form.extrapolations}
    wanted = len(groups) - 1 - held
    fitting = [origin for origin in origins if origin >= wanted]
    return min(fitting) if fitting else None


def _backtest(form: FormFit, material: FitMaterial) -> Backtest | None:
    origin = _origin(form, material.groups)
    if origin is None:
        return None
    looks = [look for look in form.extrapolations if look.origin == origin]
    log_c = np.log(material.arrays.flops)

    def compute(group: int) -> float:
        return math.exp(float(log_c[list(material.groups[group])].mean()))

    total = sum(look.num_points for look in looks)
    return Backtest(
        compute(origin),
        tuple(compute(look.budget) for look in looks),
        tuple(look.bias for look in looks),
        tuple(math.sqrt(look.spread**2 + look.noise**2 / look.num_points) for look in looks),
        math.sqrt(sum(look.num_points * look.rms**2 for look in looks) / total),
    )


def _ranked(material: FitMaterial) -> tuple[FormScore, ...]:
    scores: list[FormScore] = []
    for form in material.ensemble.forms:
        test = _backtest(form, material)
        origin = _origin(form, material.groups)
        sizes = [look.num_points for look in form.extrapolations if look.origin == origin]
        scores.append(
            FormScore(
                law=form.problem.law.name,
                weight=form.weight,
                num_parameters=form.problem.law.num_parameters,
                objective=form.fit.objective,
                noise=form.noise,
                backtest_rms=None if test is None else test.rms,
                backtest_bias=None if test is None else float(np.average(test.bias, weights=sizes)),
                log_loss_at_target=float(material.target.log_loss(form.problem, form.fit.theta[None])[0]),
            )
        )
    return tuple(sorted(scores, key=lambda s: (math.inf if s.backtest_rms is None else s.backtest_rms, s.objective)))


def _heaps(material: FitMaterial) -> dict[str, tuple[float, float]]:
    if material.draws is None:
        return {}
    law, theta = material.problem.law, material.draws.theta
    natural = law.natural(theta, material.problem.inputs)
    values = {name: natural[name] for name in ("loss_floor", "alpha", "beta")}
    values["a"] = law.size_exponent_of_compute(theta)
    values["log_loss_at_target"] = material.target.log_loss(material.problem, theta)
    found = {name: two_modes(value) for name, value in values.items()}
    return {name: heaps for name, heaps in found.items() if heaps is not None}

"""All diagnostics of one fit, in one record."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.checks.backtest import Backtest, FormScore, hold_out, rank_forms
from flopsfit_ds.fit.checks.design import LearningRates, condition_number, learning_rate_edges
from flopsfit_ds.fit.checks.refits import DeltaRefit, SmallRuns, Suspect, Target, delta_refits, small_runs, suspects
from flopsfit_ds.fit.checks.shapes import ResidualTrend, residual_trends, two_modes
from flopsfit_ds.fit.forecast.ensemble import Ensemble
from flopsfit_ds.fit.points.points import Point, PointArrays
from flopsfit_ds.fit.points.ray import tokens_scatter
from flopsfit_ds.fit.solve.bootstrap import Draws
from flopsfit_ds.fit.solve.certificate import CertifiedFit
from flopsfit_ds.fit.solve.covariance import asymptotic_covariance
from flopsfit_ds.fit.solve.likelihood import LikelihoodProfile, profile_likelihood
from flopsfit_ds.fit.solve.solver import Problem


@dataclass(frozen=True)
class Diagnostics:
    """What could be wrong with a fit.

    Attributes:
        backtest: None with fewer than three budgets, or too few points on the lower ones.
        forms: Forms of law ranked by the back-test, then by objective.
        skipped_forms: Form -> why it could not be fitted.
        drift: What earlier forecasts of these points were off by, an e-fold of compute; added to predictions.
        growth: Standard deviation of what is left of their error, an e-fold.
        condition_number: Of J^T J with columns of unit length.
        tokens_scatter: Standard deviation of ln D about its regression on ln N; near nought on a single ray.
        delta_refits: Refits with other deltas.
        residual_trends: Trends of the residuals.
        suspects: Points with large residuals or leverage, with the fit without each.
        learning_rates: Where several were tried.
        small_runs: The smallest runs against the law of the others; None with too few to tell.
        likelihood_profiles: Profile likelihood of each parameter.
        two_modes: Quantity -> centres of two heaps of its resampled values.
    """

    backtest: Backtest | None
    forms: tuple[FormScore, ...]
    skipped_forms: dict[str, str]
    drift: float
    growth: float
    condition_number: float
    tokens_scatter: float
    delta_refits: tuple[DeltaRefit, ...]
    residual_trends: tuple[ResidualTrend, ...]
    suspects: tuple[Suspect, ...]
    learning_rates: LearningRates
    small_runs: SmallRuns | None
    likelihood_profiles: tuple[LikelihoodProfile, ...]
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
    log_compute = np.log(material.arrays.flops)
    return Diagnostics(
        backtest=hold_out(first, material.groups, log_compute),
        forms=rank_forms(material.ensemble.forms, material.groups, log_compute, material.target),
        skipped_forms=material.ensemble.skipped,
        drift=material.ensemble.history.drift,
        growth=material.ensemble.history.growth,
        condition_number=condition_number(problem, fit),
        tokens_scatter=tokens_scatter(np.log(material.arrays.num_params), np.log(material.arrays.num_tokens)),
        delta_refits=delta_refits(problem, fit, material.target),
        residual_trends=residual_trends(material.arrays, residuals, problem.law.num_parameters),
        suspects=suspects(problem, fit, material.points, residuals, first.noise, material.target),
        learning_rates=learning_rate_edges(material.all_points),
        small_runs=small_runs(problem, fit),
        likelihood_profiles=profile_likelihood(problem, fit, scale, spreads, material.level),
        two_modes=_heaps(material),
    )


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

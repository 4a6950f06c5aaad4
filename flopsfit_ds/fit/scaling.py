"""Fit a scaling law: selection, certified fit, resamples, diagnostics, all in one result."""

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

import flopsfit_ds
from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.fit.checks.diagnostics import Diagnostics, FitMaterial, run_diagnostics
from flopsfit_ds.fit.checks.refits import Target
from flopsfit_ds.fit.checks.view import FitView, fallen_with, plain
from flopsfit_ds.fit.checks.warnings import collect_warnings
from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.forecast.ensemble import Ensemble, build_ensemble
from flopsfit_ds.fit.forecast.isoflop import IsoflopDiagnostics, budget_groups, isoflop_minima
from flopsfit_ds.fit.forecast.optimum import LawAt
from flopsfit_ds.fit.forecast.rolling import compute_groups
from flopsfit_ds.fit.laws.base import FLOOR, Inputs, Law
from flopsfit_ds.fit.laws.registry import COMPUTE_ONLY, OF_REPEATS, get_law
from flopsfit_ds.fit.losses import HUBER_NAMES, FloatArray, LossFunction, make_loss
from flopsfit_ds.fit.points.compute import compute_rule_of
from flopsfit_ds.fit.points.dependence import cluster_labels, point_weights, resampled_kind
from flopsfit_ds.fit.points.points import Exclusion, Point, PointArrays, in_order, told, with_rows
from flopsfit_ds.fit.points.ray import Ray, ray_of
from flopsfit_ds.fit.points.selection import select_points
from flopsfit_ds.fit.quantities import Quantities
from flopsfit_ds.fit.result import Audit, LawSummary, ScalingFit
from flopsfit_ds.fit.solve.bootstrap import Draws, bootstrap_fits
from flopsfit_ds.fit.solve.certificate import CertifiedFit, certified_fit
from flopsfit_ds.fit.solve.covariance import run_noise
from flopsfit_ds.fit.solve.solver import Problem
from flopsfit_ds.spec.fit_options import (
    DEFAULTS,
    LEAST_RESAMPLES,
    TARGET_FACTOR,
    FitOptions,
    LawName,
    LossName,
    Resampling,
)

OPTIMISER = "variable-projection grid, batched Newton / Levenberg-Marquardt with exact Hessians and reweighted majorant"
_ONE_BUDGET = 0.12
"""E-folds of compute: between nearer runs N* moves by 6% at most, where N* ~ C^0.5; that is no second budget."""
_LEAST_VALUES = 3  # a floor, an amplitude and an exponent
_MAY_BE_ON_A_BOUND = (FLOOR, "log_R", "log_R_N")


def fit_scaling_law(
    points: Iterable[Point],
    *,
    law: str = DEFAULTS.law,
    loss: str = DEFAULTS.loss,
    huber_delta: float = DEFAULTS.huber_delta,
    bootstrap_samples: int = DEFAULTS.bootstrap_samples,
    bootstrap: str = DEFAULTS.bootstrap,
    level: float = DEFAULTS.level,
    target_compute: float | None = DEFAULTS.target_compute,
    seed: int = DEFAULTS.seed,
    other_forms: bool = DEFAULTS.other_forms,
    diagnostics: bool = DEFAULTS.diagnostics,
    loss_floor: float | None = DEFAULTS.loss_floor,
    excluded: Sequence[Exclusion] = (),
) -> ScalingFit:
    """Fit a scaling law to finished runs.

    Args:
        points: The runs; those that cannot be used are listed in `ScalingFit.excluded`.
        law: Form, one of `registry.LAWS`.
        loss: "huber_log" (Huber on log loss, Hoffmann et al. 2022), "squared_log", "huber", "squared" or
            "lower_huber_log" (runs above the law pull a quarter as hard: for small runs that are under-tuned).
        huber_delta: Half width of the quadratic zone of a Huber loss.
        bootstrap_samples: Resamples for standard errors and intervals; 0 for none.
        bootstrap: What is resampled: "points", "clusters" (runs where they repeat, sizes otherwise) or "wild".
        level: Probability of the intervals.
        target_compute: FLOPs of the run to be predicted; None means ten times the largest budget.
        seed: Of the resampling.
        other_forms: Whether other forms of law enter the prediction intervals; without them the intervals assume that
            the form is right.
        diagnostics: Whether to run the diagnostics: back-test, sensitivity, leverage, likelihood profiles.
        loss_floor: E, where it is known; None to fit it.
        excluded: Rows already left out while reading, to be listed with the rest.

    Runs that all lie on one ray of tokens per parameter are fitted by the compute-only law, whatever form was asked.

    Raises:
        FitError: Too few points, sizes or budgets for the law, unknown options, or a fit without a certificate. Where
            no law can be fitted, `isoflop.isoflop_minima` still gives the valleys.
    """
    options = FitOptions(
        law=cast(LawName, law),
        loss=cast(LossName, loss),
        huber_delta=huber_delta,
        bootstrap_samples=bootstrap_samples,
        bootstrap=cast(Resampling, bootstrap),
        level=level,
        target_compute=target_compute,
        seed=seed,
        other_forms=other_forms,
        diagnostics=diagnostics,
        loss_floor=loss_floor,
    )
    _check_options(options)
    everyone = in_order(with_rows(list(points)))
    if everyone and all(point.loss < 0 for point in everyone):
        raise FitError(
            f"all {len(everyone)} losses are negative (such as {everyone[0].loss:.4g}): a log likelihood? Give its "
            "negative, nats per token"
        )
    chosen = select_points(everyone)
    work = _FitWork.of(options, chosen.points, len(chosen.excluded) + len(excluded))
    checked = work.diagnose(everyone) if options.diagnostics else None
    return work.result((*excluded, *chosen.excluded), checked)


@dataclass(frozen=True, eq=False)
class _FitWork:
    """A fit in the making: what its result and its diagnostics are made of."""

    options: FitOptions
    points: tuple[Point, ...]
    arrays: PointArrays
    rule: ComputeRule
    problem: Problem
    fit: CertifiedFit
    draws: Draws | None
    groups: list[list[int]]
    ensemble: Ensemble
    computes: list[float]
    isoflop: IsoflopDiagnostics
    ray: Ray | None

    @classmethod
    def of(cls, options: FitOptions, points: tuple[Point, ...], num_excluded: int) -> "_FitWork":
        """Fit, resample and weigh the forms.

        Raises:
            FitError: As `fit_scaling_law`.
        """
        arrays = PointArrays.of(points)
        ray = ray_of(arrays)
        form = get_law(options.law if ray is None else COMPUTE_ONLY)
        check_support(form, arrays, num_excluded, ray)
        rule = compute_rule_of(arrays)
        problem = make_problem(form, make_loss(options.loss, options.huber_delta), arrays, options.loss_floor)
        fit = certified_fit(problem)
        problem, fit = _weighted(problem, fit, points)
        _check_exponents(problem, fit)
        clusters, kind = cluster_labels(points), resampled_kind(points, options.bootstrap)
        draws = None
        if options.bootstrap_samples:
            samples = options.bootstrap_samples
            draws = bootstrap_fits(problem, fit.theta, fit.starts, clusters, kind, samples, options.seed)
            if len(draws.theta) < samples // 2:
                raise FitError(
                    f"{draws.num_failed} of {samples} resampled fits did not converge: these points do not determine "
                    f"the {form.name} law; fit a form with fewer parameters, or take bootstrap_samples=0 for none"
                )
        groups = compute_groups(points, arrays, on_a_ray=ray is not None)
        isoflop = isoflop_minima(points)
        labels = clusters if kind == "clusters" else np.arange(len(points))
        ensemble = build_ensemble(
            problem, fit, groups, arrays, labels, options.seed, options.other_forms, rule, isoflop.budgets
        )
        computes = _reported_computes(points, arrays, options.target_compute)
        return cls(options, points, arrays, rule, problem, fit, draws, groups, ensemble, computes, isoflop, ray)

    @property
    def at(self) -> LawAt:
        """The law, ready to be evaluated."""
        return LawAt(self.problem.law, self.fit.theta, self.problem.inputs, self.rule)

    def diagnose(self, everyone: Sequence[Point]) -> Diagnostics:
        """All diagnostics; `everyone` are the points before any was left out."""
        return run_diagnostics(
            FitMaterial(
                problem=self.problem,
                fit=self.fit,
                draws=self.draws,
                ensemble=self.ensemble,
                groups=self.groups,
                points=self.points,
                all_points=everyone,
                arrays=self.arrays,
                target=_target(self.at, self.arrays, self.computes[-1], self.ray),
                level=self.options.level,
            )
        )

    def result(self, excluded: tuple[Exclusion, ...], diagnostics: Diagnostics | None) -> ScalingFit:
        """The result with its warnings."""
        problem, fit, level = self.problem, self.fit, self.options.level
        quantities = Quantities(problem.law, problem.inputs, self.rule, fit, self.draws, level, len(self.points))
        view = FitView(
            points=self.points,
            problem=problem,
            fit=fit,
            at=self.at,
            draws=self.draws,
            standard_errors=quantities.standard_errors(),
            intervals=quantities.intervals(),
            level=level,
            isoflop=self.isoflop,
            optima=quantities.optima(self.at, self.computes),
            diagnostics=diagnostics,
            frontier=self.ensemble.frontier_beside(self.at, self.computes[-1]),
            ray=self.ray,
            asked=self.options.law,
        )
        return ScalingFit(
            law=_summary(problem.law, problem.inputs, fit.theta),
            objective=fit.objective,
            standard_errors=dict(view.standard_errors),
            intervals=dict(view.intervals),
            certificate=fit.certificate,
            isoflop=view.isoflop,
            optima=view.optima,
            warnings=collect_warnings(view),
            excluded=excluded,
            points=self.points,
            residuals=problem.law.log_loss(fit.theta[None], problem.inputs)[0] - problem.log_loss,
            level=level,
            at=self.at,
            prediction=self.ensemble.model(self.arrays, self.rule, level, self.ray),
            frontier=view.frontier,
            target_compute=self.computes[-1],
            draws=self.draws,
            diagnostics=diagnostics,
            audit=_audit(self.options, self.draws, self.rule, self.points, problem.precision),
        )


def _weighted(problem: Problem, fit: CertifiedFit, points: Sequence[Point]) -> tuple[Problem, CertifiedFit]:
    """The problem and its fit with the weights that the errors of the points ask for."""
    residuals = problem.law.log_loss(fit.theta[None], problem.inputs)[0] - problem.log_loss
    precision = point_weights(points, run_noise(residuals, problem.law.num_parameters))
    if precision is None:
        return problem, fit
    weighted = problem._replace(precision=precision)
    return weighted, certified_fit(weighted)


def make_problem(form: Law, loss: LossFunction, arrays: PointArrays, floor: float | None = None) -> Problem:
    """The least-squares problem of these points, without weights.

    Raises:
        FitError: A given floor that is not below all losses, or of a form without one.
    """
    inputs = Inputs.centred(arrays.num_params, arrays.num_tokens, arrays.unique_tokens)
    log_loss = np.log(arrays.loss)
    if floor is not None and FLOOR not in form.parameter_names:
        raise FitError(f"the {form.name} law has no floor, so loss_floor {floor:g} means nothing to it")
    least = float(arrays.loss.min())
    if floor is not None and not 0.0 < floor < least:
        raise FitError(f"loss_floor is {floor:g}: it must lie between nought and the smallest loss, {least:.4g}")
    none = np.zeros(0)
    return Problem(form, inputs, log_loss, loss, none, none, floor=floor).under(form)


def _check_options(options: FitOptions) -> None:
    get_law(options.law)
    make_loss(options.loss, options.huber_delta)
    if not 0.0 < options.level < 1.0:
        raise FitError(f"level must lie between 0 and 1, got {options.level}")
    if options.bootstrap_samples < 0 or 0 < options.bootstrap_samples < LEAST_RESAMPLES:
        raise FitError(
            f"bootstrap_samples is {options.bootstrap_samples}: take 0 for none, or at least {LEAST_RESAMPLES} "
            f"({DEFAULTS.bootstrap_samples} is usual)"
        )
    target = options.target_compute
    if target is not None and not (math.isfinite(target) and target > 0):
        raise FitError(f"target_compute must be positive and finite, got {target}")


def _check_exponents(problem: Problem, fit: CertifiedFit) -> None:
    """Refuse a fit in which what sets the exponent of N* ran to a bound.

    A floor of nought is a warning.
    """
    held = [name for name in fit.certificate.active_bounds if name not in _MAY_BE_ON_A_BOUND]
    if held:
        raise FitError(
            f"{', '.join(map(plain, held))} of the {problem.law.name} law ran to a bound: the losses do not fall with "
            f"{fallen_with(held)} as such a law does, so N* and D* are unknown; check the columns, add sizes and "
            "budgets, or fit a form with fewer parameters"
        )


def check_support(form: Law, arrays: PointArrays, num_excluded: int, ray: Ray | None = None) -> None:
    """Refuse points that cannot carry the law.

    Raises:
        FitError: Fewer distinct points than parameters and one, fewer than three sizes or numbers of tokens, one
            budget, or no repeated data for the data-constrained form.
    """
    sizes = np.round(np.log(arrays.num_params), 4)
    tokens = np.round(np.log(arrays.num_tokens), 4)
    distinct = len(set(zip(sizes.tolist(), tokens.tolist(), strict=True)))
    left_out = f" ({num_excluded} more were left out)" if num_excluded else ""
    if distinct <= form.num_parameters and ray is not None:
        raise FitError(
            f"{distinct} distinct points{left_out}, all on {ray.in_words}: loss against compute alone needs "
            f"{form.num_parameters + 1}, and N* and D* need runs at other ratios; train some at a quarter and at four "
            "times as many tokens per parameter"
        )
    if distinct <= form.num_parameters:
        raise FitError(
            f"{distinct} distinct points{left_out} for the {form.num_parameters} parameters of the {form.name} law: at "
            f"least {form.num_parameters + 1} are needed; the isoFLOP minima need no law"
        )
    for values, column, what in ((sizes, arrays.num_params, "sizes"), (tokens, arrays.num_tokens, "numbers of tokens")):
        count = len(set(values.tolist()))
        if count < _LEAST_VALUES:
            shown = ", ".join(format_count(v) for v in sorted(set(column.tolist()))[:_LEAST_VALUES])
            raise FitError(
                f"{count} different {what} ({shown}) among {len(sizes)} points: a floor, an amplitude and an exponent "
                f"need at least {_LEAST_VALUES}"
            )
    if np.ptp(np.log(arrays.flops)) < _ONE_BUDGET:
        raise FitError(
            f"all {len(sizes)} points lie at one compute budget ({format_flops(arrays.flops[0])} FLOPs): a law needs "
            "at least two, and three to be checked; the isoFLOP minimum of this one needs no law"
        )
    if form.name in OF_REPEATS and arrays.unique_tokens is None:
        raise FitError(
            f"no point repeats its data (unique tokens below tokens), so the {form.name} law has nothing to fit"
        )


def _reported_computes(points: Sequence[Point], arrays: PointArrays, target: float | None) -> list[float]:
    groups = budget_groups(points)
    few = groups if len(groups) <= 20 else []
    computes = [
        points[g[0]].compute_budget_flops or float(np.exp(np.log(arrays.flops[g]).mean())) for g in few if len(g) > 1
    ]
    largest = max([*computes, float(arrays.flops.max())])
    return [*computes, target or TARGET_FACTOR * largest]


def _target(at: LawAt, arrays: PointArrays, compute: float, ray: Ray | None) -> Target:
    """Where diagnostics judge predictions: the optimum at the target, the ray, or beyond the data without either."""
    log_c = math.log(compute)
    if ray is not None:
        log_n = ray.log_params(log_c, at.rule)
        return Target(log_n, ray.log_tokens(log_n))
    try:
        log_n = at.log_optimum(log_c)
    except FitError:
        beyond = log_c - float(np.log(arrays.flops).max())
        log_n = float(np.log(arrays.num_params).max()) + 0.5 * beyond
    return Target(log_n, float(at.rule.log_tokens(np.array(log_c), np.array(log_n))))


def _summary(form: Law, inputs: Inputs, theta: FloatArray) -> LawSummary:
    natural = {name: float(value[0]) for name, value in form.natural(theta[None], inputs).items()}
    a = float(form.size_exponent_of_compute(theta[None])[0])
    named = {name: natural.pop(name) for name in ("loss_floor", "A", "B", "alpha", "beta")}
    return LawSummary(
        form=form.name,
        formula=form.formula,
        source=form.source,
        **named,
        a=a,
        b=1.0 - a,
        own=natural,
    )


def _audit(
    options: FitOptions,
    draws: Draws | None,
    rule: ComputeRule,
    points: Sequence[Point],
    precision: FloatArray | None,
) -> Audit:
    canonical = json.dumps([told(p) for p in points], sort_keys=True, separators=(",", ":"))
    return Audit(
        package_version=flopsfit_ds.__version__,
        numpy_version=np.__version__,
        python_version=platform.python_version(),
        loss=options.loss,
        huber_delta=options.huber_delta if options.loss in HUBER_NAMES else None,
        optimiser=OPTIMISER,
        bootstrap=None if draws is None else draws.kind,
        bootstrap_samples=0 if draws is None else len(draws.theta),
        bootstrap_seed=options.seed,
        compute_rule=rule.description,
        largest_weight=None if precision is None else float(precision.max() / precision.min()),
        points_sha256=hashlib.sha256(canonical.encode()).hexdigest(),
    )

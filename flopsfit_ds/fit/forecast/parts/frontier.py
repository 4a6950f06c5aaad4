"""The frontier: loss at the best size of each isoFLOP budget against compute, L = E + A / C^alpha.

It assumes no surface of loss, only that the best loss of a budget falls with compute as it did. As a member of the
ensemble it says what is lost at the optimum; the fitted law says how much worse another size of that budget is, so that
one question has one answer whether it is asked by compute or by size and tokens.

A few minima extrapolate wildly where the floor is free: on two public grids its weight by likelihood widened intervals
by half and moved no centre. So it counts only where its own forecasts of later budgets beat those of the median member.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.forecast.isoflop import BudgetMinimum
from flopsfit_ds.fit.forecast.optimum import LawAt
from flopsfit_ds.fit.forecast.parts.members import NUM_DRAWS, Member, OriginFit, origins_of, seen_at, view_of
from flopsfit_ds.fit.laws.base import Inputs, Law
from flopsfit_ds.fit.laws.registry import COMPUTE_ONLY, get_law
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.solve.certificate import CertifiedFit
from flopsfit_ds.fit.solve.covariance import asymptotic_covariance, run_noise
from flopsfit_ds.fit.solve.solver import Problem
from flopsfit_ds.fit.solve.starts import grid_starts
from flopsfit_ds.fit.solve.thinned import best_end

LEAST_MINIMA = 4
"""Of a frontier: two parameters at least, and two to judge them by."""
_FREE_FLOOR = 5
"""Minima from which on the floor is free; fewer take that of the fitted law."""
_STARTS = 4


@dataclass(frozen=True)
class FrontierSummary:
    """The compute-only law of the budgets' minima, L = E + A / C^alpha, beside the fitted law.

    Attributes:
        loss_floor: E.
        A: Amplitude, with C = 6 N D.
        alpha: Exponent.
        floor_from: "minima", "law" where there are too few minima for a floor of their own, or "given".
        num_minima: Budgets with a minimum.
        scatter: Standard deviation of ln L of the minima about it.
        weight: Its share of the ensemble of predictions.
        loss_at_target: Its loss at the target compute.
        log_gap: ln of that loss over the fitted law's there.
        log_standard_error: Standard error of its ln L there.
    """

    loss_floor: float
    A: float
    alpha: float
    floor_from: str
    num_minima: int
    scatter: float
    weight: float
    loss_at_target: float
    log_gap: float
    log_standard_error: float


@dataclass(frozen=True, eq=False)
class Frontier:
    """The compute-only law of the minima.

    Attributes:
        loss_floor: E.
        A: Amplitude, with C = 6 N D.
        alpha: Exponent.
        floor_from: "minima", "law" where there are too few minima for a floor of their own, or "given".
        num_minima: Budgets with a minimum.
        scatter: Standard deviation of ln L of the minima about it.
        theta: (3,), about the centres of the points.
        draws: (draws, 3), of its uncertainty.
    """

    loss_floor: float
    A: float
    alpha: float
    floor_from: str
    num_minima: int
    scatter: float
    theta: FloatArray
    draws: FloatArray

    def log_loss(self, inputs: Inputs) -> FloatArray:
        """ln L at these sizes and tokens, taken for the best of their compute, (points,)."""
        return get_law(COMPUTE_ONLY).log_loss(self.theta[None], inputs)[0]

    def beside(self, at: LawAt, compute: float, weight: float) -> FrontierSummary:
        """What it says at a compute, beside the fitted law at its optimum.

        Raises:
            FitError: The fitted law has no optimum there.
        """
        best = at.optimum(compute)
        there = at.inputs.at(np.log([best.num_params]), np.log([best.num_tokens]))
        own = float(self.log_loss(there)[0])
        error = float(get_law(COMPUTE_ONLY).log_loss(self.draws, there)[:, 0].std())
        return FrontierSummary(
            loss_floor=self.loss_floor,
            A=self.A,
            alpha=self.alpha,
            floor_from=self.floor_from,
            num_minima=self.num_minima,
            scatter=self.scatter,
            weight=weight,
            loss_at_target=math.exp(own),
            log_gap=own - math.log(best.loss),
            log_standard_error=error,
        )


@dataclass(frozen=True, eq=False)
class FrontierMember:
    """The frontier with its place in the ensemble."""

    frontier: Frontier
    member: Member


def offset_from_optimum(
    law: Law, theta: FloatArray, rule: ComputeRule, inputs: Inputs
) -> tuple[Inputs, FloatArray] | None:
    """The best sizes and tokens at the compute of each point, and ln L of the point over that of its best size.

    None where the law has no interior optimum.

    Args:
        law: A form of size and data.
        theta: (parameters,).
        rule: How compute divides.
        inputs: The points.
    """
    log_n, log_d = inputs.n + inputs.centre_n, inputs.d + inputs.centre_d
    log_c = rule.log_flops(log_n, log_d)
    best_n = law.log_optimum(theta[None], log_c, rule, inputs)[0]
    if not np.isfinite(best_n).all():
        return None
    best = inputs.at(best_n, rule.log_tokens(log_c, best_n))
    return best, law.log_loss(theta[None], inputs)[0] - law.log_loss(theta[None], best)[0]


def frontier_member(
    problem: Problem,
    fit: CertifiedFit,
    rule: ComputeRule,
    minima: Sequence[BudgetMinimum],
    groups: Sequence[Sequence[int]],
    log_compute: FloatArray,
    seed: int,
) -> FrontierMember | None:
    """The frontier of all minima, and of those that each origin has seen; None with fewer than four minima.

    Args:
        problem: The points under the fitted law, without weights.
        fit: Its fit.
        rule: How compute divides.
        minima: Of the isoFLOP budgets; those that were refused are left out.
        groups: Points by rising compute, from `rolling.compute_groups`.
        log_compute: (points,) ln FLOPs.
        seed: Of the draws.
    """
    everyone = np.arange(len(log_compute))
    whole = _frontier(problem, fit.theta, minima, math.inf, seed)
    seen = None if whole is None else _member_view(problem, fit.theta, rule, whole, everyone)
    if whole is None or seen is None:
        return None
    origins: dict[int, OriginFit] = {}
    for origin in origins_of(groups):
        keep = seen_at(groups, origin)
        if len(keep) < problem.law.num_parameters + 2:
            continue
        theta = _refit(problem, fit, keep)
        earlier = _frontier(problem, theta, minima, float(np.exp(log_compute[keep].max())), seed)
        found = None if earlier is None else _member_view(problem, theta, rule, earlier, keep)
        if found is not None:
            origins[origin] = replace(found, on_trial=True)
    member = Member(
        get_law(COMPUTE_ONLY), 0.0, whole.theta, whole.draws, seen.noise, seen.log_likelihood, origins, on_trial=True
    )
    return FrontierMember(whole, member)


def _refit(problem: Problem, fit: CertifiedFit, keep: np.ndarray) -> FloatArray:
    """The fitted form on some of the points."""
    starts = np.concatenate([fit.theta[None], fit.minima[1:_STARTS], fit.starts[:_STARTS]])
    return best_end(problem.points(keep), starts)


def _member_view(
    problem: Problem, theta: FloatArray, rule: ComputeRule, frontier: Frontier, keep: np.ndarray
) -> OriginFit | None:
    """What the frontier says of all points, with the valleys of the fitted law."""
    found = offset_from_optimum(problem.law, theta, rule, problem.inputs)
    if found is None:
        return None
    best, offset = found
    return view_of(problem, frontier.log_loss(best) + offset, np.ones(len(offset)), keep)


def _frontier(
    problem: Problem, theta: FloatArray, minima: Sequence[BudgetMinimum], up_to: float, seed: int
) -> Frontier | None:
    """The frontier of the minima up to a compute."""
    found = [m for m in minima if m.num_params and m.num_tokens and m.loss and m.compute_flops <= up_to * 1.05]
    if len(found) < LEAST_MINIMA:
        return None
    log_n = np.log([m.num_params or 1.0 for m in found])
    log_d = np.log([m.num_tokens or 1.0 for m in found])
    log_loss = np.log([m.loss or 1.0 for m in found])
    law, floor, origin = get_law(COMPUTE_ONLY), problem.floor, "given"
    if floor is None:
        own = len(found) >= _FREE_FLOOR
        floor, origin = (None, "minima") if own else (_floor_of(problem, theta, log_loss), "law")
    if floor is not None and floor <= 0:  # of a form without one: the frontier's own has a logarithm
        return None
    small = problem._replace(
        inputs=problem.inputs.at(log_n, log_d), log_loss=log_loss, floor=floor, precision=None
    ).under(law)
    best = best_end(small, grid_starts(small))
    residuals = law.log_loss(best[None], small.inputs)[0] - log_loss
    scatter = run_noise(residuals, 3 if floor is None else 2)
    scale = scatter if problem.loss.on_log else scatter * float(np.exp(log_loss).mean())
    covariance = asymptotic_covariance(small, best, np.ones(len(found), dtype=bool), max(scale, 1e-12))
    rng = np.random.default_rng(seed)
    draws = rng.multivariate_normal(best, covariance, size=NUM_DRAWS, method="eigh")
    natural = {name: float(value[0]) for name, value in law.natural(best[None], small.inputs).items()}
    return Frontier(
        loss_floor=natural["loss_floor"],
        A=natural["A"],
        alpha=natural["alpha"],
        floor_from=origin,
        num_minima=len(found),
        scatter=scatter,
        theta=best,
        draws=np.clip(draws, small.lower, small.upper),
    )


def _floor_of(problem: Problem, theta: FloatArray, log_loss: FloatArray) -> float:
    """The floor of the fitted law, below all minima."""
    floor = float(problem.law.natural(theta[None], problem.inputs)["loss_floor"][0])
    return min(floor, 0.999 * float(np.exp(log_loss.min())))

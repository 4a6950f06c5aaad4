"""The back-test's origin: fit on lower budgets, look at the next ones, as `history` does for the members."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.forecast.isoflop import budget_groups
from flopsfit_ds.fit.laws.base import Law
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import Point, PointArrays
from flopsfit_ds.fit.solve.covariance import asymptotic_covariance, run_noise
from flopsfit_ds.fit.solve.solver import Problem
from flopsfit_ds.fit.solve.starts import grid_starts
from flopsfit_ds.fit.solve.thinned import best_end

# By `study_forecasts.py --constant` over 237 predictions of two public tables, covered to 86% with a score of 11.1:
# 4 chunks gave 86% and 10.6, 9 chunks 86% and 11.4; 3 to 12 starts and 1 to 4 spare points changed nothing.
_CHUNKS = 6
_IN_BUDGETS = 0.8
_STARTS = 6
_SPARE = 2
_SAME_COMPUTE = 0.05  # seeds of one run, or tokens rounded to whole steps
MIN_ORIGIN_BUDGETS = 2  # one budget says nothing of how loss falls with compute
_HELD_OUT = 0.3


@dataclass(frozen=True)
class Extrapolation:
    """How a form fitted on the budgets up to an origin does on one later budget.

    Attributes:
        law: The form.
        origin: Index of the last budget it saw.
        budget: Index of the budget it is judged on.
        log_distance: ln of that budget over the origin.
        num_points: Points it is judged on.
        bias: Mean of ln(predicted) - ln(observed) over them.
        rms: Root mean square of the same.
        spread: Standard deviation of the mean prediction by the delta method.
        noise: Standard deviation of the residuals among the points that were seen.
    """

    law: str
    origin: int
    budget: int
    log_distance: float
    num_points: int
    bias: float
    rms: float
    spread: float
    noise: float


def compute_groups(points: Sequence[Point], arrays: PointArrays, on_a_ray: bool = False) -> list[list[int]]:
    """Indices of the points by rising compute: the isoFLOP budgets, or sixths of the points where there are none.

    On a ray every compute that was trained is a budget. Empty with fewer than three budgets: nothing could be held out.
    """
    if on_a_ray:
        rising = np.argsort(arrays.flops, kind="stable")
        steps = np.flatnonzero(np.diff(np.log(arrays.flops[rising])) > _SAME_COMPUTE) + 1
        found = [part.tolist() for part in np.split(rising, steps)]
        return found if len(found) >= 3 else []
    groups = [g for g in budget_groups(points) if len(g) > 1]
    if sum(len(g) for g in groups) >= _IN_BUDGETS * len(points):
        return groups if len(groups) >= 3 else []
    order = np.argsort(arrays.flops, kind="stable")
    chunks = min(_CHUNKS, len(points) // 3)
    return [part.tolist() for part in np.array_split(order, chunks)] if chunks >= 3 else []


def origin_of(groups: Sequence[Sequence[int]], least_points: int) -> int | None:
    """The back-test's origin: it leaves about the top third of the budgets, at least one, and sees enough points.

    Returns:
        Index of the last budget that is seen; None where there is no such origin.
    """
    held = max(1, round(_HELD_OUT * len(groups)))
    for origin in range(max(MIN_ORIGIN_BUDGETS - 1, len(groups) - 1 - held), len(groups) - 1):
        if sum(len(group) for group in groups[: origin + 1]) >= least_points:
            return origin
    return None


def roll(
    problem: Problem, best: FloatArray, groups: Sequence[Sequence[int]], log_compute: FloatArray
) -> list[Extrapolation]:
    """Extrapolations of one form from the back-test's origin to every later budget; none where it has no origin.

    Args:
        problem: All points, without weights.
        best: (parameters,), the optimum of all points.
        groups: From `compute_groups`.
        log_compute: (points,) ln FLOPs.
    """
    law = problem.law
    origin = origin_of(groups, law.num_parameters + _SPARE)
    if origin is None:
        return []
    keep = np.concatenate([np.asarray(group) for group in groups[: origin + 1]])
    theta = best_end(problem.points(keep), np.concatenate([best[None], grid_starts(problem)[:_STARTS]]))
    return _judge(problem, law, theta, origin, keep, groups, log_compute)


def _judge(
    problem: Problem,
    law: Law,
    theta: FloatArray,
    origin: int,
    keep: np.ndarray,
    groups: Sequence[Sequence[int]],
    log_compute: FloatArray,
) -> list[Extrapolation]:
    evaluation = law.evaluate(theta[None], problem.inputs)
    errors = evaluation.log_loss[0] - problem.log_loss
    noise = run_noise(errors[keep], law.num_parameters)
    scale = noise if problem.loss.on_log else noise * float(np.exp(problem.log_loss[keep]).mean())
    covariance = asymptotic_covariance(problem, theta, keep, scale)
    jacobian = evaluation.jacobian()[0]
    here = float(log_compute[list(groups[origin])].mean())
    results: list[Extrapolation] = []
    for budget in range(origin + 1, len(groups)):
        index = list(groups[budget])
        mean_slope = jacobian[:, index].mean(axis=1)
        results.append(
            Extrapolation(
                law.name,
                origin,
                budget,
                float(log_compute[index].mean()) - here,
                len(index),
                float(errors[index].mean()),
                float(np.sqrt((errors[index] ** 2).mean())),
                math.sqrt(max(0.0, float(mean_slope @ covariance @ mean_slope))),
                noise,
            )
        )
    return results

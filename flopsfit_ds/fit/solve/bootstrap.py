"""Resampled fits: by point, by cluster, or wild. All resamples are rows of one batch."""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.solve.covariance import leverage
from flopsfit_ds.fit.solve.solver import Problem, minimise, solve_symmetric
from flopsfit_ds.spec.fit_options import Resampling

BOOTSTRAP_KINDS: tuple[str, ...] = get_args(Resampling)
_AUDITED = 128
"""A second optimum that 2% of the resamples prefer is met among so many with a probability of 1 - 0.98^128 = 92%."""
_CHECKED = 32
_CLOSE = 0.25
"""Of a standard deviation, root mean square: between one step and the full fit of a resample."""
MANY_POINTS = 5000
"""From here on one step is taken: standard errors of 10,000 planted points were up to 4% too wide, of 1,500 14%."""
_REDRAWS = 50
"""Where every second resample is poor, one is still poor after so many draws with a probability of 2^-50 = 1e-15."""
_BETTER = 1e-6
"""As the certificate: objectives nearer than this are one optimum."""
_MOST_LEVERAGE = 0.9
"""A wild residual is divided by one minus its leverage; so it grows tenfold at most."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Parameters of the law fitted to each resample.

    Attributes:
        kind: What was resampled.
        theta: (samples, parameters).
        num_failed: Resamples whose fit did not converge; they are left out of theta.
        num_switched: Resamples whose best optimum was found from another start than the optimum of all points.
    """

    kind: str
    theta: FloatArray
    num_failed: int
    num_switched: int


def resample_weights(clusters: np.ndarray, samples: int, least: int, rng: np.random.Generator) -> FloatArray:
    """Integer weights of the points, (samples, points): how often the cluster of each was drawn.

    A resample with fewer than `least` distinct points, or with one cluster only, is drawn again: it cannot identify
    a law.

    Raises:
        FitError: Such resamples keep coming up.
    """
    count = int(clusters.max()) + 1
    sizes, each_alone = np.bincount(clusters).astype(np.float32), np.array_equal(clusters, np.arange(count))
    drawn = _counts(count, samples, rng)
    for _ in range(_REDRAWS):
        met = drawn > 0
        poor = (met @ sizes < least) | (met.sum(axis=1) < 2)
        if not poor.any():
            return (drawn if each_alone else drawn[:, clusters]).astype(np.float64)
        drawn[poor] = _counts(count, int(poor.sum()), rng)
    raise FitError(
        f"{count} clusters of {len(clusters)} points are too few to resample a law of {least} parameters; use "
        "bootstrap='wild', or train more sizes"
    )


def _counts(count: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` was drawn among as many, (samples, count)."""
    if count < MANY_POINTS:
        return rng.multinomial(count, np.full(count, 1.0 / count), size=samples)
    # the same distribution, drawn eight times as fast
    return np.stack([np.bincount(rng.integers(0, count, size=count), minlength=count) for _ in range(samples)])


def bootstrap_fits(
    problem: Problem,
    best: FloatArray,
    starts: FloatArray,
    clusters: np.ndarray,
    kind: str,
    samples: int,
    seed: int,
) -> Draws:
    """Fit the law to `samples` resamples, each from the optimum of all points.

    The first 128 resamples are also fitted from the start that suits each best; if that finds a lower objective in
    any of them, all resamples are fitted so, and the lower optimum counts.

    Args:
        problem: The problem of all points, without weights.
        best: (parameters,), its optimum.
        starts: (starts, parameters), the grid starts of all points.
        clusters: (points,), the cluster of each point; used by kind "clusters".
        kind: "points", "clusters" or "wild" (each residual, divided by one minus its leverage, with a random sign: Wu
            1986, Liu 1988, MacKinnon and White 1985).
        samples: Number of resamples.
        seed: Of the random generator.

    Raises:
        FitError: An unknown kind, or too few points to resample.
    """
    rng = np.random.default_rng(seed)
    points = problem.inputs.n.shape[0]
    if kind == "wild":
        evaluation = problem.law.evaluate(best[None], problem.inputs)
        fitted = evaluation.log_loss[0]
        residual = (problem.log_loss - fitted) / (1.0 - np.minimum(leverage(evaluation.jacobian()[0]), _MOST_LEVERAGE))
        signs = rng.choice(np.array([-1.0, 1.0]), size=(samples, points))
        resampled = problem._replace(log_loss=fitted + signs * residual)
    elif kind in BOOTSTRAP_KINDS:
        labels = np.arange(points) if kind == "points" else clusters
        resampled = problem._replace(weights=resample_weights(labels, samples, best.shape[0], rng))
    else:
        raise FitError(f"unknown bootstrap {kind!r}: choose one of {', '.join(BOOTSTRAP_KINDS)}")
    if points >= MANY_POINTS and resampled.weights is not None:
        stepped = one_step(resampled, best, _CHECKED)
        if stepped is not None:
            return Draws(kind, stepped, 0, 0)
    solution = minimise(resampled, np.repeat(best[None], samples, axis=0), warm=True)
    theta, objective, converged = solution.theta.copy(), solution.objective.copy(), solution.converged.copy()
    switched = np.zeros(samples, dtype=bool)
    for rows in (np.arange(min(samples, _AUDITED)), np.arange(min(samples, _AUDITED), samples)):
        if not rows.size:
            break
        part = _rows(resampled, rows)
        other = minimise(part, _best_starts(part, starts, len(rows)))
        lower = other.converged & (other.objective < objective[rows] * (1 - _BETTER))
        theta[rows[lower]] = other.theta[lower]
        converged[rows[lower]] = True
        switched[rows[lower]] = True
        if not lower.any():
            break
    return Draws(kind, theta[converged], int((~converged).sum()), int(switched.sum()))


def one_step(problem: Problem, best: FloatArray, checked: int) -> FloatArray | None:
    """One Newton step from `best` for each resample, (samples, parameters): of many points as good as its optimum.

    It is off by the order of one over the number of points, its spread by the root of that (Shao and Tu 1995, section
    8.1). The first `checked` resamples are fitted in full; where they differ by more than a quarter of the spread, or a
    step leaves the bounds, the answer is None.
    """
    assert problem.weights is not None
    evaluation = problem.law.evaluate(best[None], problem.inputs)
    _, first, second, _ = (part[0] for part in problem.loss.score(evaluation.log_loss, problem.log_loss))
    jacobian = evaluation.jacobian()[0]
    curved = first * evaluation.point_curvature() + (second - first) * jacobian[:, None] * jacobian[None]
    weights = problem.weights if problem.precision is None else problem.weights * problem.precision
    size, samples = len(best), len(weights)
    gradient = weights @ (first * jacobian).T
    hessian = (weights @ curved.reshape(size * size, -1).T).reshape(samples, size, size)
    step, positive = solve_symmetric(hessian, -gradient)
    theta = best + step
    if not positive.all() or ((theta <= problem.lower) | (theta >= problem.upper)).any():
        return None
    few = np.arange(min(samples, checked))
    whole = minimise(_rows(problem, few), np.repeat(best[None], len(few), axis=0), warm=True)
    off = np.sqrt(((whole.theta - theta[few]) ** 2).mean(axis=0)) / np.maximum(theta.std(axis=0), 1e-300)
    return theta if whole.converged.all() and float(off.max()) <= _CLOSE else None


def _rows(problem: Problem, rows: np.ndarray) -> Problem:
    if problem.weights is not None:
        return problem._replace(weights=problem.weights[rows])
    return problem._replace(log_loss=problem.log_loss[rows])


def _best_starts(problem: Problem, starts: FloatArray, count: int) -> FloatArray:
    """For each resample, the start with the lowest objective, (count, parameters)."""
    predicted = problem.law.log_loss(starts, problem.inputs)
    weights = problem.weights_of(slice(None))
    if problem.weights is not None and weights is not None:
        value = problem.loss.score(predicted, problem.log_loss).value @ weights.T
    else:
        scores = [problem.loss.score(row[None], problem.log_loss).value.sum(axis=1) for row in predicted]
        value = np.stack(scores)
    return starts[value.argmin(axis=0)][:count]

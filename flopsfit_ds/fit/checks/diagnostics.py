"""What could be wrong with a fit: sensitivity to delta, trends in residuals, influential points, collinear design."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.losses import FloatArray, make_loss
from flopsfit_ds.fit.points.points import Point, PointArrays, learning_rate_groups
from flopsfit_ds.fit.solve.bootstrap import leverage
from flopsfit_ds.fit.solve.certificate import CertifiedFit
from flopsfit_ds.fit.solve.solver import Problem, minimise

_DELTA_FACTORS = (0.1, 0.3, 3.0, 10.0, 100.0)
_SUSPECT_RESIDUAL = 4.0
_SUSPECT_LEVERAGE = 3.0
_MOST_SUSPECTS = 12


@dataclass(frozen=True)
class DeltaRefit:
    """The law refitted with another delta.

    Attributes:
        huber_delta: the other delta.
        alpha: exponent of size.
        beta: exponent of data.
        loss_floor: E.
        a: exponent of N*.
        log_loss_change: change of predicted ln L at the target.
    """

    huber_delta: float
    alpha: float
    beta: float
    loss_floor: float
    a: float
    log_loss_change: float


@dataclass(frozen=True)
class ResidualTrend:
    """Regression of the residuals on a centred coordinate and its square.

    Attributes:
        against: "N", "D", "C" or "D/N" (logarithms).
        slope: change of the residual for each factor e.
        curvature: coefficient of the square.
        p_value: of the F test that both are nought.
    """

    against: str
    slope: float
    curvature: float
    p_value: float


@dataclass(frozen=True)
class Suspect:
    """A point with a large residual or a large leverage, and the fit without it; it stays in the fit.

    Attributes:
        row: its row.
        name: its label or run id.
        residual_sigmas: residual over the noise.
        leverage: diagonal of the projection matrix.
        a_without: exponent of N* without it.
        a_with: exponent of N* with it.
        log_loss_change: change of predicted ln L at the target when it is left out.
    """

    row: int | None
    name: str | None
    residual_sigmas: float
    leverage: float
    a_without: float
    a_with: float
    log_loss_change: float


@dataclass(frozen=True)
class LearningRates:
    """Sizes at which several learning rates were tried.

    Attributes:
        tried: number of such sizes.
        best_at_edge: number of them whose best learning rate is the smallest or largest tried.
        rows_at_edge: rows of the points at those sizes.
    """

    tried: int
    best_at_edge: int
    rows_at_edge: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Target:
    """Where changes of a prediction are judged: ln N and ln D of the optimum at the target compute."""

    log_n: float
    log_d: float

    def log_loss(self, problem: Problem, theta: FloatArray) -> FloatArray:
        """ln L there for each row of theta."""
        return problem.law.log_loss(theta, problem.inputs.at(np.array([self.log_n]), np.array([self.log_d])))[:, 0]


def delta_refits(problem: Problem, fit: CertifiedFit, target: Target) -> tuple[DeltaRefit, ...]:
    """Refits with delta from a tenth to a hundredfold, from several starts; none for a squared loss."""
    if not math.isfinite(problem.loss.delta):
        return ()
    own = float(target.log_loss(problem, fit.theta[None])[0])
    refits: list[DeltaRefit] = []
    for factor in _DELTA_FACTORS:
        other = problem._replace(loss=make_loss(problem.loss.name, factor * problem.loss.delta))
        solution = minimise(other, np.concatenate([fit.minima, fit.starts[:4]]))
        theta = solution.theta[int(solution.objective.argmin())][None]
        natural = problem.law.natural(theta, problem.inputs)
        refits.append(
            DeltaRefit(
                other.loss.delta,
                float(natural["alpha"][0]),
                float(natural["beta"][0]),
                float(natural["loss_floor"][0]),
                float(problem.law.size_exponent_of_compute(theta)[0]),
                float(target.log_loss(problem, theta)[0]) - own,
            )
        )
    return tuple(refits)


def residual_trends(arrays: PointArrays, residuals: FloatArray, num_parameters: int) -> tuple[ResidualTrend, ...]:
    """Trends of the residuals (winsorised at four robust sigmas) with N, D, C and D/N."""
    from scipy.special import fdtrc

    robust = 1.4826 * float(np.median(np.abs(residuals)))
    values = np.clip(residuals, -4 * robust, 4 * robust) if robust > 0 else residuals
    values = values - values.mean()
    spare = len(values) - num_parameters - 2
    log_n, log_d, log_c = np.log(arrays.num_params), np.log(arrays.num_tokens), np.log(arrays.flops)
    trends: list[ResidualTrend] = []
    for name, x in (("N", log_n), ("D", log_d), ("C", log_c), ("D/N", log_d - log_n)):
        if spare < 1 or np.ptp(x) < 1e-9:
            continue
        x = x - x.mean()
        design = np.stack([x, x * x - (x * x).mean()], axis=1)
        (slope, curvature), *_ = np.linalg.lstsq(design, values, rcond=None)
        left = float(((values - design @ np.array([slope, curvature])) ** 2).sum())
        explained = float((values**2).sum()) - left
        p_value = float(fdtrc(2, spare, max(0.0, explained) / 2 / max(left / spare, 1e-300)))
        trends.append(ResidualTrend(name, float(slope), float(curvature), p_value))
    return tuple(trends)


def suspects(
    problem: Problem,
    fit: CertifiedFit,
    points: Sequence[Point],
    residuals: FloatArray,
    noise: float,
    target: Target,
) -> tuple[Suspect, ...]:
    """Points with residuals beyond four sigmas or leverage beyond thrice the mean, each with the fit without it."""
    hat = leverage(problem.law.evaluate(fit.theta[None], problem.inputs).jacobian()[0])
    sigmas = np.abs(residuals) / max(noise, 1e-300)
    mean = problem.law.num_parameters / len(points)
    excess = np.maximum(sigmas / _SUSPECT_RESIDUAL, hat / (_SUSPECT_LEVERAGE * mean))
    chosen = [int(k) for k in np.argsort(-excess)[:_MOST_SUSPECTS] if excess[k] > 1.0]
    if not chosen or len(points) <= problem.law.num_parameters + 1:
        return ()
    weights = np.ones((len(chosen), len(points)))
    weights[np.arange(len(chosen)), chosen] = 0.0
    solution = minimise(problem._replace(weights=weights), np.repeat(fit.theta[None], len(chosen), axis=0), warm=True)
    a_without = problem.law.size_exponent_of_compute(solution.theta)
    a_with = float(problem.law.size_exponent_of_compute(fit.theta[None])[0])
    change = target.log_loss(problem, solution.theta) - target.log_loss(problem, fit.theta[None])
    return tuple(
        Suspect(
            points[k].row,
            points[k].label or points[k].run_id,
            float(sigmas[k]),
            float(hat[k]),
            float(a_without[j]),
            a_with,
            float(change[j]),
        )
        for j, k in enumerate(chosen)
    )


def learning_rate_edges(points: Sequence[Point]) -> LearningRates:
    """Where the best learning rate is the last one tried on either side, so that a better one may lie beyond."""
    groups = learning_rate_groups(points)
    rows: list[int | None] = []
    edges = 0
    for group in groups:
        means = {rate: float(np.mean([p.loss for p in members])) for rate, members in group.items()}
        best = min(means, key=lambda rate: means[rate])
        if best in (min(means), max(means)):
            edges += 1
            rows.extend(p.row for p in group[best])
    return LearningRates(len(groups), edges, tuple(rows))


def condition_number(problem: Problem, fit: CertifiedFit) -> float:
    """Condition number of J^T J with columns of unit length, over the parameters that are not on a bound."""
    free = [name not in fit.certificate.active_bounds for name in problem.law.parameter_names]
    jacobian = problem.law.evaluate(fit.theta[None], problem.inputs).jacobian()[0][free]
    norms = np.sqrt((jacobian**2).sum(axis=1, keepdims=True))
    if (norms == 0).any():
        return math.inf
    values = np.linalg.svd(jacobian / norms, compute_uv=False)
    return float((values[0] / max(values[-1], 1e-300)) ** 2)


def tokens_scatter(problem: Problem) -> float:
    """Standard deviation of ln D about its regression on ln N: how far the points leave a single ray."""
    n, d = problem.inputs.n, problem.inputs.d
    slope = float((n * d).sum() / max(1e-300, float((n * n).sum())))
    return float(np.std(d - slope * n))


def two_modes(values: FloatArray) -> tuple[float, float] | None:
    """Centres of two separate heaps of resampled values, or None for one heap.

    Two heaps: splitting the sorted values where it explains most variance leaves both sides with at least a tenth of
    them,
    and their centres are more than four times the larger of their spreads apart (two halves of one normal: 2.6).
    """
    values = np.sort(values[np.isfinite(values)])
    count = len(values)
    if count < 50 or values[-1] - values[0] <= 1e-12 * max(1.0, abs(float(values[0]))):
        return None
    sizes = np.arange(1, count)
    left = np.cumsum(values)[:-1] / sizes
    right = (values.sum() - np.cumsum(values)[:-1]) / (count - sizes)
    gain = sizes * (count - sizes) * (right - left) ** 2
    k = int(gain.argmax()) + 1
    if min(k, count - k) < count // 10:
        return None
    low, high = values[:k], values[k:]
    spread = max(float(low.std()), float(high.std()))
    centres = float(low.mean()), float(high.mean())
    return centres if centres[1] - centres[0] > 4.0 * max(spread, 1e-300) else None

"""Members of the ensemble of predictions: each form of law, fitted so that the points nearest to the target count most.

Small runs are the ones that are mistuned, and the farthest from what is to be predicted. With all points counted alike
they bend a law; so every form is fitted with weights that fall with the distance from the largest compute, at two
rates.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.laws.base import Law
from flopsfit_ds.fit.losses import FloatArray, LossFunction
from flopsfit_ds.fit.solve.bootstrap import MANY_POINTS, one_step, resample_weights
from flopsfit_ds.fit.solve.certificate import CertifiedFit
from flopsfit_ds.fit.solve.covariance import asymptotic_covariance, run_noise
from flopsfit_ds.fit.solve.solver import Problem, minimise
from flopsfit_ds.fit.solve.thinned import MOST_POINTS, best_ends, on_sample, sample_points

RECENCIES = (0.4, 0.8)
"""Weights fall by this power of compute. On eight public tables cut at 60 budgets the median error of the centre,
averaged over tables, was 1.83% without, 1.35% with .3, 1.27% with .7, 1.31% with 1.4, 1.19% with .4 and .8 together."""
RECENCIES_ALONE = (0.0, 0.4)
"""Of the compute-only law: three parameters leave few of the runs of a ray over, and with weights that fall by .8 only
two or three of them count. Over 648 forecasts of planted rays (`calibrate_fit.py rays`) 90% intervals covered 84% with
a score of 12.0 with .4 and .8, 87% with 9.9 with .2 and .4, 89% with 9.3 with these."""
NUM_DRAWS = 40
"""Resamples of a member; only a robust standard deviation is taken of them."""
# 3 to 12 origins, 2 to 8 starts and 1 to 4 spare points gave 237 predictions of two public tables one coverage, to
# 0.4%, and median errors of 1.31 to 1.35% (`study_forecasts.py --constant`).
_MOST_ORIGINS = 6
_STARTS = 4
_SPARE = 2
_SEARCHED = 500  # points, 70 and more from each origin to the next: ten for each parameter
_CHECKED = 6  # of the resamples that one step is taken for, how many are fitted in full


@dataclass(frozen=True, eq=False)
class OriginFit:
    """A member that has seen only the points up to an origin.

    Attributes:
        log_loss: (points,), what it says of all points, the later ones among them.
        noise: Standard deviation of ln L about it, among the points seen.
        log_likelihood: Penalised as in BIC, of the points seen.
        on_trial: As of `Member`.
    """

    log_loss: FloatArray
    noise: float
    log_likelihood: float
    on_trial: bool = False


@dataclass(frozen=True, eq=False)
class Member:
    """One form at one rate of weights.

    Attributes:
        law: The form.
        recency: The power of compute with which weights fall.
        theta: (parameters,).
        draws: (draws, parameters), fitted to resamples of the points.
        noise: Standard deviation of ln L of one run about it.
        log_likelihood: Profiled quasi-likelihood with the penalty of BIC.
        origins: Its fits by origin; an origin with too few points for it is absent.
        on_trial: Whether it counts only once its forecasts have been better than those of the median member.
    """

    law: Law
    recency: float
    theta: FloatArray
    draws: FloatArray
    noise: float
    log_likelihood: float
    origins: dict[int, OriginFit]
    on_trial: bool = False


def origins_of(groups: Sequence[Sequence[int]]) -> list[int]:
    """Indices of the last group that each origin sees: from the second on, at most six, spread evenly."""
    if len(groups) < 3:
        return []
    last = np.linspace(1, len(groups) - 2, min(_MOST_ORIGINS, len(groups) - 2))
    return sorted({round(float(index)) for index in last})


def seen_at(groups: Sequence[Sequence[int]], origin: int) -> np.ndarray:
    """Indices of the points up to an origin."""
    return np.concatenate([np.asarray(group) for group in groups[: origin + 1]])


def recency_weights(log_compute: FloatArray, keep: np.ndarray, recency: float) -> FloatArray:
    """Weights of all points, (points,), nought outside `keep`; they sum to the number of points kept."""
    weights = np.zeros(len(log_compute))
    weights[keep] = np.exp(recency * (log_compute[keep] - log_compute[keep].max()))
    return weights * (len(keep) / weights.sum())


def fit_members(
    problem: Problem,
    fit: CertifiedFit,
    groups: Sequence[Sequence[int]],
    log_compute: FloatArray,
    clusters: np.ndarray,
    seed: int,
    recencies: Sequence[float] = RECENCIES,
) -> list[Member]:
    """One form's members, each with its resamples and its fits by origin; all of them rows of a few batches.

    Args:
        problem: All points, without weights.
        fit: Its certified fit, from which the searches start.
        groups: Points by rising compute, from `rolling.compute_groups`; empty where nothing can be held out.
        log_compute: (points,) ln FLOPs.
        clusters: (points,), what is resampled together.
        seed: Of the resampling.
        recencies: Powers of compute with which weights fall; a member for each.
    """
    law, everyone = problem.law, np.arange(len(log_compute))
    keeps = {origin: seen_at(groups, origin) for origin in origins_of(groups)}
    keeps = {origin: keep for origin, keep in keeps.items() if len(keep) >= law.num_parameters + _SPARE}
    rows = [(recency, keep) for recency in recencies for keep in (everyone, *keeps.values())]
    weights = np.stack([recency_weights(log_compute, keep, recency) for recency, keep in rows])
    starts = np.concatenate([fit.theta[None], fit.minima[1:_STARTS], fit.starts[:_STARTS]])
    if len(everyone) > MOST_POINTS:
        seen = [everyone[:0], *keeps.values(), everyone]
        strata = [np.setdiff1d(later, earlier) for earlier, later in itertools.pairwise(seen)]
        theta = _solve_many(problem, weights, starts, strata, [keep for _, keep in rows])
    else:
        theta = best_ends(problem, starts, weights)
    predicted = law.log_loss(theta, problem.inputs)
    members: list[Member] = []
    size = 1 + len(keeps)
    for number, recency in enumerate(recencies):
        first = number * size
        whole = view_of(problem, predicted[first], weights[first], everyone)
        origins = {
            origin: view_of(problem, predicted[index], weights[index], keep)
            for index, (origin, keep) in enumerate(keeps.items(), start=first + 1)
        }
        draws = _draws(problem, theta[first], weights[first], whole.noise, clusters, seed)
        members.append(Member(law, recency, theta[first], draws, whole.noise, whole.log_likelihood, origins))
    return members


def _solve_many(
    problem: Problem, weights: FloatArray, starts: FloatArray, strata: list[np.ndarray], keeps: list[np.ndarray]
) -> FloatArray:
    """As `best_ends`, of many points: a sample of each stratum says which start is best, all points where it ends.

    The weights of each row are nought outside its own of `keeps`.
    """
    sample = sample_points(strata, _SEARCHED)
    theta = best_ends(on_sample(problem, sample), starts, weights[:, sample.index])
    for row, keep in enumerate(keeps):
        seen = problem._replace(weights=weights[row : row + 1]).points(keep)
        theta[row] = minimise(seen, theta[row][None], warm=True).theta[0]
    return theta


def view_of(problem: Problem, predicted: FloatArray, weights: FloatArray, keep: np.ndarray) -> OriginFit:
    """How predictions (points,) of all points fit those in `keep`, weighted (points,)."""
    residuals = (predicted - problem.log_loss)[keep]
    noise = run_noise(residuals, problem.law.num_parameters, weights[keep])
    score = problem.loss.score(predicted[None], problem.log_loss).value[0]
    penalty = 0.5 * problem.law.num_parameters * math.log(len(keep))
    likelihood = quasi_log_likelihood(problem.loss, float(score @ weights), len(keep)) - penalty
    return OriginFit(predicted, noise, likelihood)


def _draws(
    problem: Problem, theta: FloatArray, weights: FloatArray, noise: float, clusters: np.ndarray, seed: int
) -> FloatArray:
    """Fits to resamples of the clusters; normal draws about the fit where these are too few to be resampled."""
    rng = np.random.default_rng(seed)
    try:
        drawn = resample_weights(clusters, NUM_DRAWS, len(theta), rng)
    except FitError:
        scale = noise if problem.loss.on_log else noise * float(np.exp(problem.log_loss).mean())
        covariance = asymptotic_covariance(problem, theta, np.ones(len(weights), dtype=bool), scale)
        draws = rng.multivariate_normal(theta, covariance, size=NUM_DRAWS, method="eigh")
        return np.clip(draws, problem.lower, problem.upper)
    resampled = problem._replace(weights=drawn * weights)
    if len(weights) >= MANY_POINTS:
        stepped = one_step(resampled, theta, _CHECKED)
        if stepped is not None:
            return stepped
    return minimise(resampled, np.repeat(theta[None], NUM_DRAWS, axis=0), warm=True).theta


def quasi_log_likelihood(loss: LossFunction, objective: float, count: int) -> float:
    """Log likelihood of residuals with density proportional to exp(-score/tau), at the best tau.

    With an infinite delta this is the normal likelihood, with a delta far below the residuals the Laplace one.
    """
    least = 1e-24 * count
    tau = np.geomspace(1e-3, 1e3, 600) * max(objective, least) / count
    root = np.sqrt(tau)
    if math.isfinite(loss.delta):

        def half(delta: float) -> FloatArray:
            inside = np.sqrt(np.pi / 2) * root * np.array([math.erf(x) for x in delta / (math.sqrt(2.0) * root)])
            return inside + tau / delta * np.exp(-0.5 * delta**2 / tau)

        mass = half(loss.delta) + half(loss.delta_above)
    else:
        mass = np.sqrt(2 * np.pi) * root
    return -float((max(objective, least) / tau + count * np.log(mass)).min())

"""Many points: the way from a far start is gone on a sample of them, only its end on all.

An end is always a minimum over all points; the sample decides no more than which valley a start falls into. So a search
over many thousand points costs little more than one over a thousand.
"""

from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.solve.solver import Problem, Solution, minimise

MOST_POINTS = 1000
"""More are thinned. Of 10,000 planted points with heavy tails the ends of all forms were those of the whole search."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Points that stand for all.

    Attributes:
        index: (sample,) which points.
        factor: (sample,) how many each stands for.
    """

    index: np.ndarray
    factor: FloatArray


def sample_points(strata: list[np.ndarray], most: int) -> Sample:
    """At most `most` points, as many from each stratum, drawn without replacement and always the same.

    Args:
        strata: Indices of the points of each; empty ones are passed over.
        most: Points in all.
    """
    strata = [stratum for stratum in strata if len(stratum)]
    rng, share = np.random.default_rng(0), max(1, most // len(strata))
    parts = [np.sort(rng.choice(s, size=min(share, len(s)), replace=False)) for s in strata]
    factors = [np.full(len(part), len(s) / len(part)) for part, s in zip(parts, strata, strict=True)]
    return Sample(np.concatenate(parts), np.concatenate(factors))


def on_sample(problem: Problem, sample: Sample) -> Problem:
    """The problem of the sampled points, each weighing for those that it stands for."""
    precision = sample.factor if problem.precision is None else problem.precision[sample.index] * sample.factor
    weights = None if problem.weights is None else problem.weights[:, sample.index]
    log_loss = problem.log_loss[..., sample.index]
    return problem._replace(
        inputs=problem.inputs.rows(sample.index), log_loss=log_loss, weights=weights, precision=precision
    )


def minimise_from_afar(problem: Problem, start: FloatArray) -> Solution:
    """`solver.minimise`, by way of a sample where there are many points."""
    count = problem.inputs.n.shape[0]
    if count <= MOST_POINTS:
        return minimise(problem, start)
    near = minimise(on_sample(problem, sample_points([np.arange(count)], MOST_POINTS)), start)
    end = minimise(problem, near.theta, warm=True)
    return Solution(
        end.theta,
        end.objective,
        end.gradient_norm,
        end.converged,
        end.at_bound,
        near.moved | end.moved,
        near.iterations + end.iterations,
    )

"""What the design cannot tell: collinear points, and learning rates tried on one side only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.fit.forecast.isoflop import budget_groups
from flopsfit_ds.fit.points.points import Point
from flopsfit_ds.fit.points.selection import learning_rate_groups, same_size_key
from flopsfit_ds.fit.solve.certificate import CertifiedFit
from flopsfit_ds.fit.solve.solver import Problem

_UNLIKE = 1.25
"""Batches are doubled and halved; what is less comes of rounding to whole devices."""

_COARSE = 0.5
"""Of the scatter about the law. Of 24 planted laws the interval of E is a seventh wider with two decimals at a noise of
.2%, eleven times with one, and where one decimal is as large as the noise (1%) it held 20 (23 with all digits)."""
_MOST_DECIMALS = 2
"""A third scatters losses by .01%, less than seeds do."""


@dataclass(frozen=True)
class LearningRates:
    """Sizes at which several learning rates were tried.

    Attributes:
        tried: Number of such sizes.
        best_at_edge: Number of them whose best learning rate is the smallest or largest tried.
        rows_at_edge: Rows of the points at those sizes.
        edges: Each of those sizes in words, the smallest first: which end of the range was the best.
    """

    tried: int
    best_at_edge: int
    rows_at_edge: tuple[int | None, ...]
    edges: tuple[str, ...]


def learning_rate_edges(points: Sequence[Point]) -> LearningRates:
    """Where the best learning rate is the last one tried on either side, so that a better one may lie beyond."""
    groups = learning_rate_groups(points)
    rows: list[int | None] = []
    edges: dict[float, str] = {}
    for group in groups:
        means = {rate: float(np.mean([p.loss for p in members])) for rate, members in group.items()}
        best = min(means, key=lambda rate: means[rate])
        if best in (min(means), max(means)):
            end = "largest" if best == max(means) else "smallest"
            size = group[best][0].num_params
            edges[size + 1e-9 * len(edges)] = f"{format_count(size)}: {best:g} is the {end}"
            rows.extend(p.row for p in group[best])
    return LearningRates(len(groups), len(edges), tuple(rows), tuple(edges[size] for size in sorted(edges)))


@dataclass(frozen=True)
class UnlikeBatches:
    """A budget whose runs were trained in batches of different sizes.

    Attributes:
        compute_flops: The budget: nominal, or the geometric mean of its runs.
        smallest: Of the batches, in the unit of the source.
        largest: Of the batches.
        learning_rate: Of all its runs, where it is one.
        rows: Of the runs in the smallest batch and in the largest.
    """

    compute_flops: float
    smallest: float
    largest: float
    learning_rate: float | None
    rows: tuple[int | None, ...]

    @property
    def in_words(self) -> str:
        """Such as `1e+19 FLOPs from 64 to 1,024`."""
        rate = "" if self.learning_rate is None else f" at one learning rate of {self.learning_rate:g}"
        return f"{format_flops(self.compute_flops)} FLOPs from {self.smallest:,.6g} to {self.largest:,.6g}{rate}"


def unlike_batches(points: Sequence[Point]) -> list[UnlikeBatches]:
    """The budgets whose runs have unlike batches; a size at which several were tried was tuned, and is left out."""
    found: list[UnlikeBatches] = []
    known = [
        point
        for point in points
        if point.global_batch and min(point.global_batch, point.num_params, point.num_tokens, point.compute_flops) > 0
        and max(point.global_batch, point.num_params, point.num_tokens, point.compute_flops) < math.inf
    ]  # fmt: skip
    for group in budget_groups(known) if known else ():
        places: dict[tuple[float, float, float | None], list[Point]] = {}
        for point in (known[index] for index in group):
            places.setdefault(same_size_key(point), []).append(point)
        alone = [each for each in places.values() if len({point.global_batch for point in each}) == 1]
        runs = sorted((point for each in alone for point in each), key=lambda point: point.global_batch or 0.0)
        if not runs:
            continue
        smallest, largest = runs[0].global_batch or 0.0, runs[-1].global_batch or 0.0
        if largest > _UNLIKE * smallest:
            budget = runs[0].compute_budget_flops
            mean = math.exp(float(np.mean([math.log(point.compute_flops) for point in runs])))
            rates = {point.learning_rate for point in runs}
            ends = tuple(point.row for point in runs if point.global_batch in (smallest, largest))
            found.append(
                UnlikeBatches(budget or mean, smallest, largest, rates.pop() if len(rates) == 1 else None, ends)
            )
    return found


@dataclass(frozen=True)
class Rounding:
    """Losses printed to few decimals.

    Attributes:
        step: All losses are multiples of it.
        scatter: Standard deviation that rounding alone gives ln L.
        noise: Of ln L of one run about the law, rounding included.
    """

    step: float
    scatter: float
    noise: float

    @property
    def in_words(self) -> str:
        """What was found, with the numbers."""
        return (
            f"all losses are multiples of {self.step:g}: rounding alone scatters them by {self.scatter:.2%}, where "
            f"runs lie {self.noise:.2%} about the law"
        )


def coarse_rounding(points: Sequence[Point], noise: float) -> Rounding | None:
    """How losses were rounded, where that is much of what runs scatter by; None where it is not.

    Args:
        points: Those that a law was fitted to.
        noise: Standard deviation of ln L of one run about it.
    """
    losses = np.array([point.loss for point in points])
    for decimals in range(_MOST_DECIMALS + 1):
        scaled = losses * 10.0**decimals
        if np.allclose(scaled, np.round(scaled), rtol=0.0, atol=1e-6):
            scatter = 10.0**-decimals / math.sqrt(12.0) / float(losses.mean())
            return Rounding(10.0**-decimals, scatter, noise) if scatter > _COARSE * noise else None
    return None


def condition_number(problem: Problem, fit: CertifiedFit) -> float:
    """Condition number of J^T J with columns of unit length, over the parameters that are not on a bound."""
    free = [name not in fit.certificate.active_bounds for name in problem.law.parameter_names]
    jacobian = problem.law.evaluate(fit.theta[None], problem.inputs).jacobian()[0][free]
    norms = np.sqrt((jacobian**2).sum(axis=1, keepdims=True))
    if (norms == 0).any():
        return math.inf
    values = np.linalg.svd(jacobian / norms, compute_uv=False)
    return float((values[0] / max(values[-1], 1e-300)) ** 2)

"""What the design cannot tell: collinear points, and learning rates tried on one side only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.base.units import format_count
from flopsfit_ds.fit.points.points import Point
from flopsfit_ds.fit.points.selection import learning_rate_groups
from flopsfit_ds.fit.solve.certificate import CertifiedFit
from flopsfit_ds.fit.solve.solver import Problem


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


def condition_number(problem: Problem, fit: CertifiedFit) -> float:
    """Condition number of J^T J with columns of unit length, over the parameters that are not on a bound."""
    free = [name not in fit.certificate.active_bounds for name in problem.law.parameter_names]
    jacobian = problem.law.evaluate(fit.theta[None], problem.inputs).jacobian()[0][free]
    norms = np.sqrt((jacobian**2).sum(axis=1, keepdims=True))
    if (norms == 0).any():
        return math.inf
    values = np.linalg.svd(jacobian / norms, compute_uv=False)
    return float((values[0] / max(values[-1], 1e-300)) ** 2)

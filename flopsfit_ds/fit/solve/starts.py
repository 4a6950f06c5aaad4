"""Where the solver starts: a grid over the exponents, the amplitudes by linear least squares (variable projection).

For fixed exponents every form is linear in its amplitudes, so a grid over two or three exponents covers the whole
parameter space. The starts are the best grid points of separate regions of the grid: spread out, and each already near
the bottom of its own valley.
"""

import numpy as np

from flopsfit_ds.fit.laws.base import Linearised
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.solve.solver import Problem, objective_of
from flopsfit_ds.fit.solve.thinned import thinned

_SMALLEST_SHARE = 0.2
"""0.002, 0.02, 0.2 and 0.5 take 100, 85, 85 and 66 passes to the same ends (`calibrate_fit.py constant`)."""


def grid_points(axes: tuple[FloatArray, ...]) -> tuple[FloatArray, np.ndarray]:
    """All combinations of the axes, (grid, axes), and the region of the grid that each lies in, (grid,)."""
    mesh = np.meshgrid(*axes, indexing="ij")
    shape = np.stack([axis.ravel() for axis in mesh], axis=1)
    parts = 16 if len(axes) == 1 else 4
    region = np.zeros(shape.shape[0], dtype=np.int64)
    widest = sorted(range(len(axes)), key=lambda axis: -len(axes[axis]))[:2]
    for axis in sorted(widest):
        rank = np.searchsorted(axes[axis], shape[:, axis])
        region = region * parts + rank * parts // len(axes[axis])
    return shape, region


def project_amplitudes(linear: Linearised, weights: FloatArray | None = None) -> FloatArray:
    """Positive amplitudes that fit each row of the linearised law best, (grid, amplitudes).

    Columns are scaled to unit size, and an amplitude that would be negative is set to a fifth of the target: nearer
    zero the solver would crawl.
    """
    scale = linear.weight / linear.target
    columns = linear.columns * scale[:, None, :]
    if weights is not None:
        columns = columns * np.sqrt(weights)[None, None, :]
        wanted = linear.weight * np.sqrt(weights)[None, :]
    else:
        wanted = linear.weight
    norms = np.maximum(np.sqrt((columns**2).sum(axis=2)), 1e-300)
    unit = columns / norms[:, :, None]
    gram = unit @ unit.transpose(0, 2, 1)
    size = gram.shape[1]
    gram[:, np.arange(size), np.arange(size)] += 1e-9
    right = (unit @ wanted[:, :, None])[:, :, 0]
    amplitude = np.linalg.solve(gram, right[:, :, None])[:, :, 0]
    least = _SMALLEST_SHARE * np.sqrt((wanted**2).sum(axis=1, keepdims=True))
    return np.maximum(amplitude, least) / norms


def grid_starts(problem: Problem) -> FloatArray:
    """Starts for the solver, best first, one for each region of the grid of exponents, (starts, parameters).

    Of many points a sample says which they are.
    """
    law, problem = problem.law, thinned(problem)
    shape, region = grid_points(law.grid())
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        linear = law.linearise(shape, problem.inputs, problem.log_loss)
        usable = np.isfinite(linear.target).all(axis=1) & (linear.target > 0).all(axis=1)
        usable &= np.isfinite(linear.columns).all(axis=(1, 2))
        shape, region = shape[usable], region[usable]
        linear = Linearised(linear.columns[usable], linear.target[usable], linear.weight[usable])
        theta = law.assemble(shape, project_amplitudes(linear), problem.log_loss)
    theta = np.clip(theta, problem.lower, problem.upper)
    score = objective_of(problem._replace(weights=None), theta)
    order = np.argsort(score, kind="stable")
    _, first = np.unique(region[order], return_index=True)
    return theta[order[np.sort(first)]]

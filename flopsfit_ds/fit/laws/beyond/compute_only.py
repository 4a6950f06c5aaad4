"""Compute alone, over a floor: what runs on one ray of tokens per parameter, or the best runs of budgets, can carry."""

import math

import numpy as np

from flopsfit_ds.fit.laws.base import Competition, Inputs, Law, Linearised, Term
from flopsfit_ds.fit.laws.terms import (
    COARSE_EXPONENTS,
    additive,
    amplitude_bounds,
    as_column,
    exponent_bounds,
    floor_bounds,
    floor_term,
    pack_bounds,
)
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.model.flops import FLOPS_PER_PARAMETER_TOKEN


class ComputeOnly(Law):
    """L = E + A / C^alpha. It knows nothing of how compute divides, so it has no optimum."""

    name = "compute"
    formula = f"L = E + A/C^alpha, C = {FLOPS_PER_PARAMETER_TOKEN}*N*D"
    source = "Henighan et al. 2020, arXiv:2010.14701, eq. 1.1 with x = compute (the frontier of Kaplan et al. 2020)"
    parameter_names = ("E", "log_A_centred", "alpha")

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """Floor and compute term."""
        c = inputs.n + inputs.d
        by_compute = as_column(theta[:, 1]) - np.outer(theta[:, 2], c)
        return [floor_term(theta[:, 0], by_compute.shape), Term(by_compute, ((1, None), (2, -c)))]

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As Chinchilla."""
        return pack_bounds([floor_bounds(log_loss), amplitude_bounds(log_loss), exponent_bounds()])

    def grid(self) -> tuple[FloatArray, ...]:
        """alpha."""
        return (0.5 * np.geomspace(COARSE_EXPONENTS[0], COARSE_EXPONENTS[-1], 16),)

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in E and A."""
        return additive([np.exp(-np.outer(shape[:, 0], inputs.n + inputs.d))], log_loss)

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(E, log A, alpha)."""
        return np.concatenate([amplitudes[:, :1], np.log(amplitudes[:, 1:]), shape], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """The one term against itself: no size is better than another."""
        level, slope = theta[:, 1], -theta[:, 2]
        return Competition(level, slope, slope, level, slope, slope)

    def size_exponent_of_compute(self, theta: FloatArray) -> FloatArray:
        """Not known."""
        return np.full(theta.shape[0], np.nan)

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """E, A and alpha of compute; it has no term of data, so B and beta are not numbers."""
        unknown = np.full(theta.shape[0], np.nan)
        centre = inputs.centre_n + inputs.centre_d + math.log(FLOPS_PER_PARAMETER_TOKEN)
        return {
            "loss_floor": theta[:, 0],
            "A": np.exp(theta[:, 1] + theta[:, 2] * centre),
            "B": unknown,
            "alpha": theta[:, 2],
            "beta": unknown,
        }

"""Size and data each by a power law of its own, over a floor."""

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


class Chinchilla(Law):
    """L = E + A / N^alpha + B / D^beta."""

    name = "chinchilla"
    formula = "L = E + A/N^alpha + B/D^beta"
    source = "Hoffmann et al. 2022, arXiv:2203.15556, eq. 2 and appendix D.2"
    parameter_names = ("E", "log_A_centred", "log_B_centred", "alpha", "beta")

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """Floor, size term, data term."""
        shape = (theta.shape[0], inputs.n.shape[0])
        return [
            floor_term(theta[:, 0], shape),
            Term(as_column(theta[:, 1]) - np.outer(theta[:, 3], inputs.n), ((1, None), (3, -inputs.n))),
            Term(as_column(theta[:, 2]) - np.outer(theta[:, 4], inputs.d), ((2, None), (4, -inputs.d))),
        ]

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Amplitudes within e^12 of the smallest loss, exponents within [0.001, 3]."""
        amplitude = amplitude_bounds(log_loss)
        return pack_bounds([floor_bounds(log_loss), amplitude, amplitude, exponent_bounds(), exponent_bounds()])

    def grid(self) -> tuple[FloatArray, ...]:
        """alpha and beta."""
        return COARSE_EXPONENTS, COARSE_EXPONENTS

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in E, A, B."""
        return additive([np.exp(-np.outer(shape[:, 0], inputs.n)), np.exp(-np.outer(shape[:, 1], inputs.d))], log_loss)

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(E, log A, log B, alpha, beta)."""
        return np.concatenate([amplitudes[:, :1], np.log(amplitudes[:, 1:]), shape], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """A / N^alpha against B / D^beta."""
        zero = np.zeros(theta.shape[0])
        return Competition(theta[:, 1], -theta[:, 3], zero, theta[:, 2], zero, -theta[:, 4])

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """E, A, B, alpha, beta."""
        return {
            "loss_floor": theta[:, 0],
            "A": np.exp(theta[:, 1] + theta[:, 3] * inputs.centre_n),
            "B": np.exp(theta[:, 2] + theta[:, 4] * inputs.centre_d),
            "alpha": theta[:, 3],
            "beta": theta[:, 4],
        }

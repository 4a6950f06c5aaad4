"""Compute and tokens per parameter, over a floor."""

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


class OverTraining(Law):
    """L = E + (p M^gamma + q M^-gamma) (N D)^-eta with M = D/N."""

    name = "overtraining"
    formula = "L = E + (p*M^gamma + q*M^-gamma) * (N*D)^-eta, M = D/N"
    source = (
        "Gadre et al. 2024, arXiv:2403.08540, eq. 4, with the exponent of M freed: gamma = eta is their form, which "
        "at C = 6 N D is the tied law"
    )
    parameter_names = ("E", "log_p_centred", "log_q_centred", "eta", "gamma")

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """Floor, under-sized term (grows with D/N), under-trained term (falls with D/N)."""
        shape = (theta.shape[0], inputs.n.shape[0])
        c, m = inputs.n + inputs.d, inputs.d - inputs.n
        by_compute, by_ratio = np.outer(theta[:, 3], c), np.outer(theta[:, 4], m)
        return [
            floor_term(theta[:, 0], shape),
            Term(as_column(theta[:, 1]) - by_compute + by_ratio, ((1, None), (3, -c), (4, m))),
            Term(as_column(theta[:, 2]) - by_compute - by_ratio, ((2, None), (3, -c), (4, -m))),
        ]

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As Chinchilla."""
        amplitude = amplitude_bounds(log_loss)
        return pack_bounds([floor_bounds(log_loss), amplitude, amplitude, exponent_bounds(), exponent_bounds()])

    def grid(self) -> tuple[FloatArray, ...]:
        """eta and gamma."""
        return 0.5 * COARSE_EXPONENTS, 0.5 * COARSE_EXPONENTS

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in E, p, q."""
        by_compute = np.outer(shape[:, 0], inputs.n + inputs.d)
        by_ratio = np.outer(shape[:, 1], inputs.d - inputs.n)
        return additive([np.exp(by_ratio - by_compute), np.exp(-by_ratio - by_compute)], log_loss)

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(E, log p, log q, eta, gamma)."""
        return np.concatenate([amplitudes[:, :1], np.log(amplitudes[:, 1:]), shape], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """The two powers of M."""
        eta, gamma = theta[:, 3], theta[:, 4]
        return Competition(theta[:, 1], -eta - gamma, gamma - eta, theta[:, 2], gamma - eta, -eta - gamma)

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """E; A, alpha and B, beta are the amplitudes p, q and the leading exponents eta + gamma of N and of D."""
        eta, gamma = theta[:, 3], theta[:, 4]
        to_compute = eta * (inputs.centre_n + inputs.centre_d)
        to_ratio = gamma * (inputs.centre_d - inputs.centre_n)
        return {
            "loss_floor": theta[:, 0],
            "A": np.exp(theta[:, 1] + to_compute - to_ratio),
            "B": np.exp(theta[:, 2] + to_compute + to_ratio),
            "alpha": eta + gamma,
            "beta": eta + gamma,
            "eta": eta,
            "gamma": gamma,
        }

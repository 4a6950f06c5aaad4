"""Data that repeats is worth less, over a floor."""

import numpy as np

from flopsfit_ds.fit.laws.base import Competition, Inputs, Law, Linearised, Term
from flopsfit_ds.fit.laws.surface.chinchilla import Chinchilla
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


class DataConstrained(Law):
    """L = E + A / N^alpha + B / D'^beta, D' = U (1 + R* (1 - exp(-(D/U - 1)/R*)))."""

    name = "data-constrained"
    formula = "L = E + A/N^alpha + B/D'^beta, D' = U*(1 + R*(1 - exp(-(D/U - 1)/R))) for D > U unique tokens"
    source = (
        "Muennighoff et al. 2023, arXiv:2305.16264, eq. 5 (the value of repeated data; with their term for "
        "excess parameters it is the form excess-parameters)"
    )
    parameter_names = ("E", "log_A_centred", "log_B_centred", "alpha", "beta", "log_R")

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """Floor, size term, term of the effective data."""
        shape = (theta.shape[0], inputs.n.shape[0])
        effective, slope, second = self._effective(theta[:, 5], inputs)
        beta = as_column(theta[:, 4])
        return [
            floor_term(theta[:, 0], shape),
            Term(as_column(theta[:, 1]) - np.outer(theta[:, 3], inputs.n), ((1, None), (3, -inputs.n))),
            Term(
                as_column(theta[:, 2]) - beta * effective,
                ((2, None), (4, -effective), (5, -beta * slope)),
                ((4, 5, -slope), (5, 5, -beta * second)),
            ),
        ]

    def effective_tokens(self, log_decay: FloatArray, inputs: Inputs) -> FloatArray:
        """Centred ln D' at each log R*, (batch, points)."""
        return self._effective(log_decay, inputs)[0]

    @staticmethod
    def _effective(log_decay: FloatArray, inputs: Inputs) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Centred ln D' and its first and second derivative with respect to ln R*, each (batch, points)."""
        unique = inputs.d if inputs.u is None else np.minimum(inputs.u, inputs.d)
        repeats = np.expm1(inputs.d - unique)[None, :]
        decay = np.exp(log_decay)[:, None]
        t = repeats / decay
        fade = np.exp(-t)
        gain = 1.0 + decay * -np.expm1(-t)
        first = decay * (1.0 - fade * (1.0 + t))
        second = first - decay * t * t * fade
        slope = first / gain
        return unique[None, :] + np.log(gain), slope, second / gain - slope * slope

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As Chinchilla; R* within [0.1, 1000] repeats."""
        amplitude, exponent = amplitude_bounds(log_loss), exponent_bounds()
        repeats = (float(np.log(0.1)), float(np.log(1000.0)))
        return pack_bounds([floor_bounds(log_loss), amplitude, amplitude, exponent, exponent, repeats])

    def grid(self) -> tuple[FloatArray, ...]:
        """alpha, beta and log R*."""
        return COARSE_EXPONENTS, COARSE_EXPONENTS, np.log([2.0, 8.0, 40.0])

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in E, A, B."""
        effective = self.effective_tokens(shape[:, 2], inputs)
        by_data = np.exp(-shape[:, 1, None] * effective)
        return additive([np.exp(-np.outer(shape[:, 0], inputs.n)), by_data], log_loss)

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(E, log A, log B, alpha, beta, log R*)."""
        return np.concatenate([amplitudes[:, :1], np.log(amplitudes[:, 1:]), shape], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """As Chinchilla: the optimum is stated for data that does not repeat."""
        return Chinchilla().competition(theta[:, :5])

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """E, A, B, alpha, beta, R (repeats after which data has lost most of its value)."""
        return {**Chinchilla().natural(theta[:, :5], inputs), "R": np.exp(theta[:, 5])}

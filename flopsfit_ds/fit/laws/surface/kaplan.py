"""Size and data interact; no floor."""

import numpy as np

from flopsfit_ds.fit.laws.base import Competition, Inputs, Law, Linearised, Term
from flopsfit_ds.fit.laws.terms import MAX_EXPONENT, as_column, pack_bounds
from flopsfit_ds.fit.losses import FloatArray


class Kaplan(Law):
    """L = ((Nc/N)^(alpha/beta) + Dc/D)^beta: no floor."""

    name = "kaplan"
    formula = "L = ((Nc/N)^(alpha/beta) + Dc/D)^beta"
    source = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5"
    parameter_names = ("log_P_centred", "log_Q_centred", "rho", "beta")
    _first = 0

    def _mixed_term(self, theta: FloatArray, inputs: Inputs) -> Term:
        """beta * ln(P N^-rho + Q / D) with its derivatives; alpha = beta * rho."""
        k = self._first
        gamma = as_column(theta[:, k + 3])
        log_p = as_column(theta[:, k]) - np.outer(theta[:, k + 2], inputs.n)
        log_q = as_column(theta[:, k + 1]) - inputs.d
        inner = np.logaddexp(log_p, log_q)
        share_p, share_q = np.exp(log_p - inner), np.exp(log_q - inner)
        cross = gamma * share_p * share_q
        gradient = (
            (k, gamma * share_p),
            (k + 1, gamma * share_q),
            (k + 2, -gamma * share_p * inputs.n),
            (k + 3, inner),
        )
        second = (
            (k, k, cross),
            (k + 1, k + 1, cross),
            (k, k + 1, -cross),
            (k, k + 2, -cross * inputs.n),
            (k + 1, k + 2, cross * inputs.n),
            (k + 2, k + 2, cross * inputs.n**2),
            (k, k + 3, share_p),
            (k + 1, k + 3, share_q),
            (k + 2, k + 3, -share_p * inputs.n),
        )
        return Term(gamma * inner, gradient, second)

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """The one term."""
        return [self._mixed_term(theta, inputs)]

    def _mixed_bounds(self) -> list[tuple[float, float]]:
        # L^(1/beta) at the smallest beta, 0.01, is e^(100 ln L): 400 holds losses up to e^4
        return [(-400.0, 400.0), (-400.0, 400.0), (0.02, 50.0), (0.01, MAX_EXPONENT)]

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Wide: rho = alpha/beta within [0.02, 50], beta within [0.01, 3]."""
        return pack_bounds(self._mixed_bounds())

    def grid(self) -> tuple[FloatArray, ...]:
        """beta and rho."""
        return np.geomspace(0.03, 0.8, 10), np.geomspace(0.3, 3.0, 8)

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """L^(1/beta) is linear in P and Q."""
        target = np.exp((log_loss - log_loss.mean())[None, :] / shape[:, :1])
        by_size = np.exp(-np.outer(shape[:, 1], inputs.n))
        columns = np.stack([by_size, np.broadcast_to(np.exp(-inputs.d), by_size.shape)], axis=1)
        return Linearised(columns, target, np.broadcast_to(shape[:, :1], target.shape))

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(log P, log Q, rho, beta)."""
        return np.concatenate(
            [np.log(amplitudes) + log_loss.mean() / shape[:, :1], shape[:, 1:2], shape[:, :1]], axis=1
        )

    def competition(self, theta: FloatArray) -> Competition:
        """(Nc/N)^rho against Dc/D."""
        k, zero = self._first, np.zeros(theta.shape[0])
        return Competition(theta[:, k], -theta[:, k + 2], zero, theta[:, k + 1], zero, zero - 1.0)

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """Exponents alpha and beta; A and B are the limits, L -> A/N^alpha as D grows and L -> B/D^beta as N grows."""
        k = self._first
        beta, rho = theta[:, k + 3], theta[:, k + 2]
        return {
            "loss_floor": np.zeros(theta.shape[0]),
            "A": np.exp(beta * (theta[:, k] + rho * inputs.centre_n)),
            "B": np.exp(beta * (theta[:, k + 1] + inputs.centre_d)),
            "alpha": beta * rho,
            "beta": beta,
        }

"""Size and data interact; no floor."""

import numpy as np

from flopsfit_ds.fit.laws.base import Competition, Inputs, Law, Linearised, Term
from flopsfit_ds.fit.laws.terms import MAX_EXPONENT, amplitude_bounds, as_column, exponent_bounds, pack_bounds
from flopsfit_ds.fit.losses import FloatArray


class Kaplan(Law):
    """L = ((Nc/N)^(alpha/beta) + Dc/D)^beta: no floor."""

    name = "kaplan"
    formula = "L = ((Nc/N)^(alpha/beta) + Dc/D)^beta"
    source = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5"
    parameter_names = ("log_A_centred", "log_B_centred", "alpha", "beta")
    _first = 0

    def _mixed_term(self, theta: FloatArray, inputs: Inputs) -> Term:
        """beta * ln(e^u + e^v) with its derivatives, u = (ln A - alpha n) / beta and v = ln B / beta - d.

        In the limits A/N^alpha and B/D^beta, as in the sums of powers, the valley of the objective is all but straight:
        five hundred searches of early origins took 23 passes where those in P, Q and rho = alpha/beta took over 200.
        """
        k = self._first
        log_a, log_b, alpha, beta = (as_column(theta[:, k + j]) for j in range(4))
        u, v = (log_a - alpha * inputs.n) / beta, log_b / beta - inputs.d
        top = np.maximum(u, v)
        share_u, share_v = np.exp(u - top), np.exp(v - top)
        total = share_u + share_v
        inner = top + np.log(total)
        share_u /= total
        share_v /= total
        gradient = (
            (k, share_u),
            (k + 1, share_v),
            (k + 2, -share_u * inputs.n),
            (k + 3, inner - share_u * u - share_v * (v + inputs.d)),
        )
        # all second derivatives come from u - v: share_u share_v / beta times the products of (1, -1, -n, w)
        cross = share_u * share_v / beta
        w = v + inputs.d - u
        by_n, by_w = cross * inputs.n, cross * w
        second = (
            (k, k, cross),
            (k, k + 1, -cross),
            (k + 1, k + 1, cross),
            (k, k + 2, -by_n),
            (k + 1, k + 2, by_n),
            (k + 2, k + 2, by_n * inputs.n),
            (k, k + 3, by_w),
            (k + 1, k + 3, -by_w),
            (k + 2, k + 3, -by_w * inputs.n),
            (k + 3, k + 3, by_w * w),
        )
        return Term(beta * inner, gradient, second)

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """The one term."""
        return [self._mixed_term(theta, inputs)]

    def _mixed_bounds(self, log_loss: FloatArray) -> list[tuple[float, float]]:
        # at the smallest beta, 0.01, the smaller limit has no share within a thousandth of the crossing
        return [amplitude_bounds(log_loss), amplitude_bounds(log_loss), exponent_bounds(), (0.01, MAX_EXPONENT)]

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As Chinchilla, beta within [0.01, 3]."""
        return pack_bounds(self._mixed_bounds(log_loss))

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
        """(ln A, ln B, alpha, beta) of beta and rho = alpha/beta, and of P = A^(1/beta), Q = B^(1/beta)."""
        beta, rho = shape[:, :1], shape[:, 1:2]
        return np.concatenate([beta * np.log(amplitudes) + log_loss.mean(), beta * rho, beta], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """(A/N^alpha)^(1/beta) against B^(1/beta)/D."""
        k, zero = self._first, np.zeros(theta.shape[0])
        log_a, log_b, alpha, beta = (theta[:, k + j] for j in range(4))
        return Competition(log_a / beta, -alpha / beta, zero, log_b / beta, zero, zero - 1.0)

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """Exponents alpha and beta; A and B are the limits, L -> A/N^alpha as D grows and L -> B/D^beta as N grows."""
        log_a, log_b, alpha, beta = (theta[:, self._first + j] for j in range(4))
        return {
            "loss_floor": np.zeros(theta.shape[0]),
            "A": np.exp(log_a + alpha * inputs.centre_n),
            "B": np.exp(log_b + beta * inputs.centre_d),
            "alpha": alpha,
            "beta": beta,
        }

    def stored(self, theta: FloatArray) -> FloatArray:
        """(ln P, ln Q, rho, beta), as version 1 of fit.json has it."""
        k, kept = self._first, theta.copy()
        kept[..., k : k + 3] /= theta[..., k + 3 :]
        return kept

    def from_stored(self, stored: FloatArray) -> FloatArray:
        """Of (ln P, ln Q, rho, beta)."""
        k, theta = self._first, stored.copy()
        theta[..., k : k + 3] *= stored[..., k + 3 :]
        return theta

"""Data that repeats is worth less, and so are parameters beyond what its unique tokens can use; over a floor."""

from typing import NamedTuple

import numpy as np

from flopsfit_ds.fit.laws.base import Competition, Inputs, Law, Linearised, Term
from flopsfit_ds.fit.laws.beyond.data_constrained import DataConstrained
from flopsfit_ds.fit.laws.surface.chinchilla import Chinchilla
from flopsfit_ds.fit.laws.terms import COARSE_EXPONENTS, additive, as_column
from flopsfit_ds.fit.losses import FloatArray

_USUAL_RATIO = float(np.log(20.0))
"""Tokens per parameter at the optimum of Hoffmann et al. 2022; for starts only."""
_MOST_EXCESS = 300.0  # e-folds: its square is still a double
_A, _B, _ALPHA, _BETA, _R_N = 1, 2, 3, 4, 6


class _Worth(NamedTuple):
    """Centred ln N' of each point, (batch, points), with derivatives by v = ln of the useful size and l = ln R_N."""

    value: FloatArray
    v: FloatArray
    l: FloatArray  # noqa: E741
    vv: FloatArray
    vl: FloatArray
    ll: FloatArray


class ExcessParameters(Law):
    """L = E + A / N'^alpha + B / D'^beta, with N' for N as D' for D, U_N the best size for the unique tokens.

    The published law counts an excess of parameters on fresh data, too. Here it counts where data repeats, so that
    fresh data has the law, and the optimum, of Chinchilla.
    """

    name = "excess-parameters"
    formula = (
        "L = E + A/N'^alpha + B/D'^beta, D' = U*(1 + R*(1 - exp(-(D/U - 1)/R))) for D > U unique tokens, N' likewise "
        "with R_N beyond the best size for U"
    )
    source = "Muennighoff et al. 2023, arXiv:2305.16264, eq. 4 to 6 (excess parameters counted where data repeats)"
    parameter_names = ("E", "log_A_centred", "log_B_centred", "alpha", "beta", "log_R", "log_R_N")

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """Floor, term of the effective size, term of the effective data."""
        floor, _, data = DataConstrained().terms(theta[:, :6], inputs)
        return [floor, self._size_term(theta, inputs), data]

    def _size_term(self, theta: FloatArray, inputs: Inputs) -> Term:
        """log A - alpha g(v, log R_N) at v = ln U_N, itself a function of A, B, alpha and beta."""
        alpha, beta = as_column(theta[:, _ALPHA]), as_column(theta[:, _BETA])
        unique = inputs.d if inputs.u is None else np.minimum(inputs.u, inputs.d)
        ratio = np.log(alpha / beta) + as_column(theta[:, _A]) - as_column(theta[:, _B])
        useful = (ratio + beta * unique) / alpha
        worth = self._worth(useful, as_column(theta[:, _R_N]), inputs.n, unique < inputs.d)
        by_alpha = (1.0 / alpha - useful) / alpha
        one = np.ones_like(useful)
        first = {_A: one / alpha, _B: -one / alpha, _ALPHA: by_alpha, _BETA: (unique - 1.0 / beta) / alpha}
        second = {
            (_A, _ALPHA): -one / alpha**2,
            (_B, _ALPHA): one / alpha**2,
            (_ALPHA, _ALPHA): -one / alpha**3 - 2.0 * by_alpha / alpha,
            (_ALPHA, _BETA): -(unique - 1.0 / beta) / alpha**2,
            (_BETA, _BETA): one / (beta**2 * alpha),
        }
        slope = {i: -alpha * worth.v * move for i, move in first.items()}
        slope[_A] = slope[_A] + 1.0
        slope[_ALPHA] = slope[_ALPHA] - worth.value
        gradient = (*slope.items(), (_R_N, -alpha * worth.l))
        curved: list[tuple[int, int, FloatArray]] = []
        for i, move_i in first.items():
            for j, move_j in first.items():
                if i <= j:
                    value = -alpha * (worth.vv * move_i * move_j + worth.v * second.get((i, j), 0.0))
                    value = value - worth.v * ((i == _ALPHA) * move_j + (j == _ALPHA) * move_i)
                    curved.append((i, j, value))
            curved.append((i, _R_N, -alpha * worth.vl * move_i - (i == _ALPHA) * worth.l))
        curved.append((_R_N, _R_N, -alpha * worth.ll))
        return Term(as_column(theta[:, _A]) - alpha * worth.value, gradient, tuple(curved))

    @staticmethod
    def _worth(useful: FloatArray, log_decay: FloatArray, n: FloatArray, repeats: np.ndarray) -> _Worth:
        beyond = repeats & (n > useful)
        v = np.where(beyond, useful, n)
        excess, decay = np.expm1(np.minimum(n - v, _MOST_EXCESS)), np.exp(log_decay)
        t = excess / decay
        fade = np.exp(-t)
        gain = 1.0 + decay * -np.expm1(-t)
        lost = fade * (excess + 1.0)
        first = decay * (1.0 - fade * (1.0 + t))
        by_decay = first / gain
        parts = (
            1.0 - lost / gain,
            by_decay,
            -lost * ((excess + 1.0) / decay - 1.0) / gain - (lost / gain) ** 2,
            -lost * t / gain + lost * first / gain**2,
            (first - decay * t * t * fade) / gain - by_decay**2,
        )
        return _Worth(v + np.log(gain), *(np.where(beyond, part, 0.0) for part in parts))

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As the data-constrained form; R_N as R."""
        lower, upper = DataConstrained().bounds(log_loss)
        return np.append(lower, lower[5]), np.append(upper, upper[5])

    def grid(self) -> tuple[FloatArray, ...]:
        """alpha, beta, log R and log R_N."""
        return COARSE_EXPONENTS, COARSE_EXPONENTS, np.log([4.0, 20.0]), np.log([2.0, 10.0])

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in E, A, B once the useful size is set to a twentieth of the unique tokens."""
        unique = inputs.d if inputs.u is None else np.minimum(inputs.u, inputs.d)
        useful = np.broadcast_to(unique + inputs.centre_d - inputs.centre_n - _USUAL_RATIO, (len(shape), len(unique)))
        size = self._worth(useful, shape[:, 3:], inputs.n, unique < inputs.d).value
        data = DataConstrained().effective_tokens(shape[:, 2], inputs)
        return additive([np.exp(-shape[:, :1] * size), np.exp(-shape[:, 1:2] * data)], log_loss)

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(E, log A, log B, alpha, beta, log R, log R_N)."""
        return np.concatenate([amplitudes[:, :1], np.log(amplitudes[:, 1:]), shape], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """As Chinchilla: the optimum is stated for data that does not repeat."""
        return Chinchilla().competition(theta[:, :5])

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """As the data-constrained form, and R_N."""
        return {**DataConstrained().natural(theta[:, :6], inputs), "R_N": np.exp(theta[:, _R_N])}

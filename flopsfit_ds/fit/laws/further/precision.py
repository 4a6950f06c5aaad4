"""Precision: weights of few bits count for fewer parameters."""

import numpy as np

from flopsfit_ds.fit.laws.base import Competition, Inputs, Law, Linearised, Term
from flopsfit_ds.fit.laws.surface.chinchilla import Chinchilla
from flopsfit_ds.fit.laws.terms import COARSE_EXPONENTS, additive
from flopsfit_ds.fit.losses import FloatArray

_MOST_BITS_SCALE = 64.0
"""Upper bound of gamma in bits: at 16 bits it would cut parameters by 4.5, far beyond the 2 to 3 bits published."""
_LEAST_BITS_SCALE = 0.05  # at one bit a parameter lost by e^-20: no loss at all
_GAMMA = 5


class EffectiveBits(Law):
    """L = E + A / (N (1 - exp(-P/gamma)))^alpha + B / D^beta, P the bits of the weights in training."""

    name = "effective-bits"
    formula = "L = E + A/(N*(1 - exp(-P/gamma)))^alpha + B/D^beta, P bits of a weight"
    source = "Kumar et al. 2024, arXiv:2411.04330, eq. 3 (weights only, without the term of post-training quantisation)"
    parameter_names = ("E", "log_A_centred", "log_B_centred", "alpha", "beta", "log_gamma")

    @staticmethod
    def _kept(log_gamma: FloatArray, bits: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """ln(1 - exp(-P/gamma)) and its derivatives by ln gamma, each (batch, points)."""
        t = bits / np.exp(log_gamma)[:, None]
        value, fade = np.log(-np.expm1(-t)), np.exp(-t)
        share = t * fade / -np.expm1(-t)
        return value, -share, share * (1.0 - t / -np.expm1(-t))

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """Floor, term of the effective size, data term."""
        assert inputs.column is not None
        floor, size, data = Chinchilla().terms(theta[:, :5], inputs)
        value, first, second = self._kept(theta[:, _GAMMA], inputs.column)
        alpha = theta[:, 3, None]
        bits = Term(
            size.log_value - alpha * value,
            ((1, None), (3, -inputs.n - value), (_GAMMA, -alpha * first)),
            ((3, _GAMMA, -first), (_GAMMA, _GAMMA, -alpha * second)),
        )
        return [floor, bits, data]

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As Chinchilla; gamma from a twentieth of a bit to 64."""
        lower, upper = Chinchilla().bounds(log_loss)
        return np.append(lower, np.log(_LEAST_BITS_SCALE)), np.append(upper, np.log(_MOST_BITS_SCALE))

    def grid(self) -> tuple[FloatArray, ...]:
        """alpha, beta and ln gamma."""
        return COARSE_EXPONENTS, COARSE_EXPONENTS, np.log([1.0, 3.0, 8.0])

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in E, A, B."""
        assert inputs.column is not None
        size = inputs.n + self._kept(shape[:, 2], inputs.column)[0]
        return additive([np.exp(-shape[:, :1] * size), np.exp(-np.outer(shape[:, 1], inputs.d))], log_loss)

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(E, log A, log B, alpha, beta, log gamma)."""
        return np.concatenate([amplitudes[:, :1], np.log(amplitudes[:, 1:]), shape], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """As Chinchilla, at full precision."""
        return Chinchilla().competition(theta[:, :5])

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """E, A, B, alpha, beta and gamma in bits."""
        values = Chinchilla().natural(theta[:, :5], inputs)
        return {"E": values.pop("loss_floor"), **values, "gamma": np.exp(theta[:, _GAMMA])}

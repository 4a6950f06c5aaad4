"""Scaling laws that are sums of a floor and power laws, each with its source.

The parameters theta of every form are logarithms of amplitudes at the centre of the data, and exponents.
"""

import numpy as np

from flopsfit_ds.fit.laws.base import Competition, Inputs, Law, Linearised, Term
from flopsfit_ds.fit.losses import FloatArray

MIN_EXPONENT = 1e-3
MAX_EXPONENT = 3.0
_AMPLITUDE_DEPTH = 12.0
_COARSE_EXPONENTS = np.geomspace(0.06, 1.2, 8)


def floor_bounds(log_loss: FloatArray) -> tuple[float, float]:
    """Bounds of E: from a thousandth of the smallest loss, which is as good as none, to the largest loss."""
    return 1e-3 * float(np.exp(log_loss.min())), float(np.exp(log_loss.max()))


def floor_term(floor: FloatArray, shape: tuple[int, int]) -> Term:
    """The floor E. It is a parameter itself, not its logarithm, so that a floor near nought is no cliff."""
    inverse = 1.0 / as_column(floor)
    value = np.broadcast_to(np.log(as_column(floor)), shape)
    return Term(value, ((0, inverse),), ((0, 0, -inverse * inverse),))


def _amplitude_bounds(log_loss: FloatArray) -> tuple[float, float]:
    return float(log_loss.min()) - _AMPLITUDE_DEPTH, float(log_loss.max()) + 1.0


def pack_bounds(pairs: list[tuple[float, float]]) -> tuple[FloatArray, FloatArray]:
    """(lower, upper) arrays of (low, high) pairs."""
    lower, upper = zip(*pairs, strict=True)
    return np.array(lower), np.array(upper)


def _exponent_bounds() -> tuple[float, float]:
    return MIN_EXPONENT, MAX_EXPONENT


def as_column(values: FloatArray) -> FloatArray:
    """One parameter for each row, ready to meet (batch, points)."""
    return values[:, None]


def _additive(shape_columns: list[FloatArray], log_loss: FloatArray) -> Linearised:
    """Amplitudes of a floor and power-law columns, against the loss itself."""
    loss = np.exp(log_loss)
    columns = np.stack([np.ones_like(shape_columns[0]), *shape_columns], axis=1)
    target = np.broadcast_to(loss, shape_columns[0].shape)
    return Linearised(columns, target, np.ones_like(target))


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
        amplitude = _amplitude_bounds(log_loss)
        return pack_bounds([floor_bounds(log_loss), amplitude, amplitude, _exponent_bounds(), _exponent_bounds()])

    def grid(self) -> tuple[FloatArray, ...]:
        """alpha and beta."""
        return _COARSE_EXPONENTS, _COARSE_EXPONENTS

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in E, A, B."""
        return _additive([np.exp(-np.outer(shape[:, 0], inputs.n)), np.exp(-np.outer(shape[:, 1], inputs.d))], log_loss)

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


class Tied(Law):
    """L = E + A / N^alpha + B / D^alpha: one exponent for both."""

    name = "chinchilla-tied"
    formula = "L = E + A/N^alpha + B/D^alpha"
    source = "Muennighoff et al. 2023, arXiv:2305.16264, appendix A (alpha = beta)"
    parameter_names = ("E", "log_A_centred", "log_B_centred", "alpha")

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """Floor, size term, data term."""
        shape = (theta.shape[0], inputs.n.shape[0])
        return [
            floor_term(theta[:, 0], shape),
            Term(as_column(theta[:, 1]) - np.outer(theta[:, 3], inputs.n), ((1, None), (3, -inputs.n))),
            Term(as_column(theta[:, 2]) - np.outer(theta[:, 3], inputs.d), ((2, None), (3, -inputs.d))),
        ]

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As Chinchilla."""
        amplitude = _amplitude_bounds(log_loss)
        return pack_bounds([floor_bounds(log_loss), amplitude, amplitude, _exponent_bounds()])

    def grid(self) -> tuple[FloatArray, ...]:
        """alpha."""
        return (np.geomspace(0.04, 1.6, 32),)

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in E, A, B."""
        return _additive([np.exp(-np.outer(shape[:, 0], inputs.n)), np.exp(-np.outer(shape[:, 0], inputs.d))], log_loss)

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(E, log A, log B, alpha)."""
        return np.concatenate([amplitudes[:, :1], np.log(amplitudes[:, 1:]), shape], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """A / N^alpha against B / D^alpha."""
        zero = np.zeros(theta.shape[0])
        return Competition(theta[:, 1], -theta[:, 3], zero, theta[:, 2], zero, -theta[:, 3])

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """E, A, B, alpha and beta = alpha."""
        return {
            "loss_floor": theta[:, 0],
            "A": np.exp(theta[:, 1] + theta[:, 3] * inputs.centre_n),
            "B": np.exp(theta[:, 2] + theta[:, 3] * inputs.centre_d),
            "alpha": theta[:, 3],
            "beta": theta[:, 3],
        }


class OverTraining(Law):
    """L = E + (p M^gamma + q M^-gamma) (N D)^-eta with M = D/N."""

    name = "overtraining"
    formula = "L = E + (p*M^gamma + q*M^-gamma) * (N*D)^-eta, M = D/N"
    source = (
        "Gadre et al. 2024, arXiv:2403.08540, eq. 4, with the exponent of M freed: gamma = eta is their form, which at "
        "C = 6 N D is the tied law"
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
        amplitude = _amplitude_bounds(log_loss)
        return pack_bounds([floor_bounds(log_loss), amplitude, amplitude, _exponent_bounds(), _exponent_bounds()])

    def grid(self) -> tuple[FloatArray, ...]:
        """eta and gamma."""
        return 0.5 * _COARSE_EXPONENTS, 0.5 * _COARSE_EXPONENTS

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in E, p, q."""
        by_compute = np.outer(shape[:, 0], inputs.n + inputs.d)
        by_ratio = np.outer(shape[:, 1], inputs.d - inputs.n)
        return _additive([np.exp(by_ratio - by_compute), np.exp(-by_ratio - by_compute)], log_loss)

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


class DataConstrained(Law):
    """L = E + A / N^alpha + B / D'^beta, D' = U (1 + R* (1 - exp(-(D/U - 1)/R*)))."""

    name = "data-constrained"
    formula = "L = E + A/N^alpha + B/D'^beta, D' = U*(1 + R*(1 - exp(-(D/U - 1)/R))) for D > U unique tokens"
    source = (
        "Muennighoff et al. 2023, arXiv:2305.16264, eq. 5 (the value of repeated data; their term for "
        "excess parameters is left out)"
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
        amplitude, exponent = _amplitude_bounds(log_loss), _exponent_bounds()
        repeats = (float(np.log(0.1)), float(np.log(1000.0)))
        return pack_bounds([floor_bounds(log_loss), amplitude, amplitude, exponent, exponent, repeats])

    def grid(self) -> tuple[FloatArray, ...]:
        """alpha, beta and log R*."""
        return _COARSE_EXPONENTS, _COARSE_EXPONENTS, np.log([2.0, 8.0, 40.0])

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """Linear in E, A, B."""
        effective = self._effective(shape[:, 2], inputs)[0]
        by_data = np.exp(-shape[:, 1, None] * effective)
        return _additive([np.exp(-np.outer(shape[:, 0], inputs.n)), by_data], log_loss)

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(E, log A, log B, alpha, beta, log R*)."""
        return np.concatenate([amplitudes[:, :1], np.log(amplitudes[:, 1:]), shape], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """As Chinchilla: the optimum is stated for data that does not repeat."""
        return Chinchilla().competition(theta[:, :5])

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """E, A, B, alpha, beta, R (repeats after which data has lost most of its value)."""
        return {**Chinchilla().natural(theta[:, :5], inputs), "R": np.exp(theta[:, 5])}

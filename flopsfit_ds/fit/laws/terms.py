"""Parts that the forms share: the floor, amplitudes and exponents, with their bounds."""

import numpy as np

from flopsfit_ds.fit.laws.base import Linearised, Term
from flopsfit_ds.fit.losses import FloatArray

MIN_EXPONENT = 1e-3
"""Over a millionfold a term with this exponent falls by 1.4%: it cannot be told from the floor."""
MAX_EXPONENT = 3.0
"""Six times the largest, 0.5, that `planted.random_law` draws; an end on a bound is refused or told."""
_AMPLITUDE_DEPTH = 12.0
"""A term of e^-12 = 6e-6 of the loss lies far below the 0.2% by which runs scatter in the studies."""
COARSE_EXPONENTS = np.geomspace(0.06, 1.2, 8)
"""In 18 planted problems of all forms, a third of them with spoilt losses, all converged starts of this grid ended in
one minimum."""


def floor_bounds(log_loss: FloatArray) -> tuple[float, float]:
    """Bounds of E: from a thousandth of the smallest loss, which is as good as none, to the largest loss."""
    return 1e-3 * float(np.exp(log_loss.min())), float(np.exp(log_loss.max()))


def floor_term(floor: FloatArray, shape: tuple[int, int]) -> Term:
    """The floor E. It is a parameter itself, not its logarithm, so that a floor near nought is no cliff."""
    inverse = 1.0 / as_column(floor)
    value = np.broadcast_to(np.log(as_column(floor)), shape)
    return Term(value, ((0, inverse),), ((0, 0, -inverse * inverse),))


def amplitude_bounds(log_loss: FloatArray) -> tuple[float, float]:
    """Bounds of the logarithm of a term at the centre of the data."""
    return float(log_loss.min()) - _AMPLITUDE_DEPTH, float(log_loss.max()) + 1.0


def pack_bounds(pairs: list[tuple[float, float]]) -> tuple[FloatArray, FloatArray]:
    """(lower, upper) arrays of (low, high) pairs."""
    lower, upper = zip(*pairs, strict=True)
    return np.array(lower), np.array(upper)


def exponent_bounds() -> tuple[float, float]:
    """Bounds of an exponent."""
    return MIN_EXPONENT, MAX_EXPONENT


def as_column(values: FloatArray) -> FloatArray:
    """One parameter for each row, ready to meet (batch, points)."""
    return values[:, None]


def additive(shape_columns: list[FloatArray], log_loss: FloatArray) -> Linearised:
    """A floor and power-law columns, linear in their amplitudes, against the loss itself."""
    loss = np.exp(log_loss)
    columns = np.stack([np.ones_like(shape_columns[0]), *shape_columns], axis=1)
    target = np.broadcast_to(loss, shape_columns[0].shape)
    return Linearised(columns, target, np.ones_like(target))

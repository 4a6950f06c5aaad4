"""Quantiles and tails of the normal, Student's and the F distribution, without the 0.3 s that importing scipy takes."""

import math
from statistics import NormalDist

import numpy as np

_PASSES = 100
_SETTLED = 1e-14  # relative, of the quantile


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution; the probability lies between 0 and 1."""
    return NormalDist().inv_cdf(probability)


def student_quantile(degrees: int, probability: float) -> float:
    """Quantile of Student's distribution.

    Newton's method from the normal quantile: above one half the distribution function is concave and the quantile lies
    beyond the normal's, so that every step ends short of it.

    Args:
        degrees: Of freedom, at least 1.
        probability: Between 0 and 1.
    """
    if probability < 0.5:
        return -student_quantile(degrees, 1.0 - probability)
    value, half = normal_quantile(probability), 0.5 * degrees
    constant = math.lgamma(half + 0.5) - math.lgamma(half) - 0.5 * math.log(degrees * math.pi)
    for _ in range(_PASSES):
        density = math.exp(constant - (half + 0.5) * math.log1p(value * value / degrees))
        step = (probability - 0.5 - _central_half(degrees, value)) / density
        value += step
        if abs(step) <= _SETTLED * value:
            break
    return value


def _central_half(degrees: int, value: float) -> float:
    """Probability between nought and a value (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan2(value, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    k = np.arange(1.0 + odd, degrees - 2.0, 2.0)
    terms = np.cumprod(np.concatenate([[1.0], k / (k + 1.0) * cosine**2]))
    if not odd:
        return 0.5 * sine * float(terms.sum())
    rest = sine * cosine * float(terms.sum()) if degrees > 1 else 0.0
    return (angle + rest) / math.pi


def f_tail_of_two(spare: int, ratio: float) -> float:
    """Probability that F with two degrees of freedom over `spare` exceeds a ratio (exact)."""
    return math.exp(-0.5 * spare * math.log1p(2.0 * ratio / spare))

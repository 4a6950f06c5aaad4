"""How training compute divides into parameters and tokens."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flopsfit_ds.fit.losses import FloatArray


class Stretch(NamedTuple):
    """Sizes, ln N from low to high, on which ln(C/(N D)) = log_factor + size_exponent ln N."""

    low: float
    high: float
    log_factor: float
    size_exponent: float


@dataclass(frozen=True)
class ComputeRule:
    """How training compute divides: ln C = ln N + ln D + r(ln N).

    r runs straight between the sizes given and is constant beyond them: nothing is known there. The usual convention
    C = 6 N D is ln 6 at one size (Kaplan et al. 2020, eq. 2.2, without the attention term). For records that carry
    exact FLOPs r is fitted, see `points.compute.compute_rule_of`.

    Attributes:
        log_sizes: ln N, rising, at least one.
        log_ratios: ln(C/(N D)) at each.
        description: In words.
    """

    log_sizes: tuple[float, ...]
    log_ratios: tuple[float, ...]
    description: str

    @classmethod
    def constant(cls, log_ratio: float, description: str) -> "ComputeRule":
        """C is a multiple of N D."""
        return cls((0.0,), (log_ratio,), description)

    def log_ratio(self, log_n: FloatArray) -> FloatArray:
        """ln(C/(N D)) at these sizes."""
        return np.interp(log_n, self.log_sizes, self.log_ratios)

    def log_tokens(self, log_compute: FloatArray, log_n: FloatArray) -> FloatArray:
        """ln D that spends the compute at this size."""
        return log_compute - log_n - self.log_ratio(log_n)

    def log_params(self, log_compute: float, log_d: float) -> float:
        """ln N that spends the compute on so many tokens."""
        sum_at_ends = np.add(self.log_sizes, self.log_ratios)
        return log_compute - log_d - float(np.interp(log_compute - log_d, sum_at_ends, self.log_ratios))

    def log_flops(self, log_n: FloatArray, log_d: FloatArray) -> FloatArray:
        """ln C of a size and a number of tokens."""
        return log_n + log_d + self.log_ratio(log_n)

    def stretches(self) -> tuple[Stretch, ...]:
        """The pieces of r by rising size; one alone where it is constant."""
        x, r = self.log_sizes, self.log_ratios
        if len(x) == 1:
            return (Stretch(-np.inf, np.inf, r[0], 0.0),)
        inner: list[Stretch] = []
        for k in range(len(x) - 1):
            slope = (r[k + 1] - r[k]) / (x[k + 1] - x[k])
            inner.append(Stretch(x[k], x[k + 1], r[k] - slope * x[k], slope))
        return Stretch(-np.inf, x[0], r[0], 0.0), *inner, Stretch(x[-1], np.inf, r[-1], 0.0)

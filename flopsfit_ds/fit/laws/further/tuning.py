"""Power laws of a tuned setting, such as the best learning rate or batch, in size and tokens."""

from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.losses import FloatArray

_VARIES = 0.1
"""E-folds: sizes, or tokens, that lie nearer to each other are one, and no exponent can be told from them."""


@dataclass(frozen=True, eq=False)
class PowerOfSizes:
    """ln y = c + a ln(N/N0) + b ln(D/D0), least squares in the logarithms (the form of Bi et al. 2024, Li et al. 2025).

    Attributes:
        names: "constant", then "N" and "D" as far as they vary apart from each other.
        theta: (names,), c and the exponents; the exponent of what does not vary is nought.
        covariance: (names, names).
        centre: (ln N0, ln D0), means of the data.
        scatter: Standard deviation of ln y of one optimum about the law.
        spare: Optima less parameters.
    """

    names: tuple[str, ...]
    theta: FloatArray
    covariance: FloatArray
    centre: tuple[float, float]
    scatter: float
    spare: int

    source = "arXiv:2401.02954 (Bi et al. 2024) and arXiv:2503.04715 (Li et al. 2025)"

    @property
    def formula(self) -> str:
        """In words."""
        return " * ".join(("c", *(f"{name}^{letter}" for name, letter in zip(self.names[1:], "ab", strict=False))))

    def at(self, num_params: float, num_tokens: float) -> tuple[float, float]:
        """ln y of the law and its standard error."""
        logs = np.log([num_params, num_tokens]) - self.centre
        row = np.array([1.0, *(logs[0 if name == "N" else 1] for name in self.names[1:])])
        return float(row @ self.theta), float(np.sqrt(row @ self.covariance @ row))


def fit_power(num_params: FloatArray, num_tokens: FloatArray, best: FloatArray) -> PowerOfSizes | None:
    """The law of optima, each (optima,); None where there are not more of them than parameters.

    Where sizes and tokens move together, as on one ray, the size stands for both.
    """
    logs = np.stack([np.log(num_params), np.log(num_tokens)], axis=1)
    middle = logs.mean(axis=0)
    moved = logs - middle
    chosen = [k for k in (0, 1) if np.ptp(logs[:, k]) > _VARIES]
    if len(chosen) == 2 and float(np.linalg.svd(moved, compute_uv=False)[1]) < _VARIES:
        chosen = [0]
    spare = len(best) - 1 - len(chosen)
    if spare < 1:
        return None
    design = np.stack([np.ones(len(best)), *(moved[:, k] for k in chosen)], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    theta = inverse @ design.T @ np.log(best)
    variance = float(((np.log(best) - design @ theta) ** 2).sum()) / spare
    names = ("constant", *("ND"[k] for k in chosen))
    centre = (float(middle[0]), float(middle[1]))
    return PowerOfSizes(names, theta, variance * inverse, centre, variance**0.5, spare)

"""A form of law of its own: Chinchilla's with a floor that is known, as the entropy of synthetic data is."""

from __future__ import annotations

import numpy as np

from flopsfit_ds.fit import Point, ScalingFit, fit_scaling_law
from flopsfit_ds.fit.laws.base import Competition, Inputs, Law, Linearised, Term
from flopsfit_ds.fit.laws.registry import LAWS
from flopsfit_ds.fit.losses import FloatArray

FLOOR = 1.7


class KnownFloor(Law):
    """L = 1.7 + A / N^alpha + B / D^beta: the floor is not fitted."""

    name = "known-floor"
    formula = "L = 1.7 + A/N^alpha + B/D^beta"
    source = "the entropy rate of the data, which is known"
    parameter_names = ("log_A_centred", "log_B_centred", "alpha", "beta")

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """The floor, which has no parameter, the size term and the data term, as logarithms with derivatives."""
        log_a, log_b, alpha, beta = (theta[:, [i]] for i in range(4))
        floor = np.full((len(theta), len(inputs.n)), np.log(FLOOR))
        return [
            Term(floor, ()),
            Term(log_a - alpha * inputs.n, ((0, None), (2, -inputs.n))),
            Term(log_b - beta * inputs.d, ((1, None), (3, -inputs.d))),
        ]

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Amplitudes within e^12 of the smallest loss, exponents within [0.001, 3]."""
        low, high = float(log_loss.min()) - 12.0, float(log_loss.max()) + 1.0
        return np.array([low, low, 1e-3, 1e-3]), np.array([high, high, 3.0, 3.0])

    def grid(self) -> tuple[FloatArray, ...]:
        """Starts of alpha and beta."""
        return np.geomspace(0.06, 1.2, 8), np.geomspace(0.06, 1.2, 8)

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """For fixed exponents, what is above the floor is linear in A and B."""
        columns = np.stack([np.exp(-np.outer(shape[:, 0], inputs.n)), np.exp(-np.outer(shape[:, 1], inputs.d))], axis=1)
        target = np.broadcast_to(np.exp(log_loss) - FLOOR, columns[:, 0].shape)
        return Linearised(columns, target, np.ones_like(target))

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(log A, log B, alpha, beta)."""
        return np.concatenate([np.log(amplitudes), shape], axis=1)

    def competition(self, theta: FloatArray) -> Competition:
        """A / N^alpha against B / D^beta."""
        zero = np.zeros(len(theta))
        return Competition(theta[:, 0], -theta[:, 2], zero, theta[:, 1], zero, -theta[:, 3])

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """The parameters in the units of the data."""
        return {
            "loss_floor": np.full(len(theta), FLOOR),
            "A": np.exp(theta[:, 0] + theta[:, 2] * inputs.centre_n),
            "B": np.exp(theta[:, 1] + theta[:, 3] * inputs.centre_d),
            "alpha": theta[:, 2],
            "beta": theta[:, 3],
        }


def fit_planted(noise: float = 0.001) -> ScalingFit:
    """Points of a law with alpha 0.34 and beta 0.28, with noise, and the fit of the new form to them."""
    LAWS[KnownFloor.name] = KnownFloor()
    random = np.random.default_rng(0)
    points = []
    for budget in (1e18, 3e18, 1e19, 3e19, 1e20):
        for size in np.geomspace(0.25, 4.0, 8) * (budget / 120.0) ** 0.5:
            tokens = budget / 6 / size
            loss = (FLOOR + 406.4 / size**0.34 + 410.7 / tokens**0.28) * np.exp(noise * random.standard_normal())
            points.append(Point(float(size), float(tokens), float(loss), compute_budget_flops=budget))
    return fit_scaling_law(points, law=KnownFloor.name, bootstrap_samples=0)


if __name__ == "__main__":
    law = fit_planted().law
    print(f"floor {law.loss_floor:.3f}, alpha {law.alpha:.3f}, beta {law.beta:.3f}")

"""From loss to a task's accuracy: at chance where the loss is high, a sigmoid of the loss from there."""

from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.losses import FloatArray

_STEEPEST = 200.0
"""Per nat: from a tenth to nine tenths of the way within .02 nats, which is less than runs differ by chance."""


@dataclass(frozen=True)
class Sigmoid:
    """Accuracy = chance + (ceiling - chance) / (1 + exp(steepness * (loss - midpoint))).

    Attributes:
        chance: Accuracy of guessing.
        own_ceiling: Whether the ceiling is fitted; without, it is one.
    """

    chance: float
    own_ceiling: bool

    source = "the second step of Bhagia et al. 2024, arXiv:2412.04403, with the chance level given"

    @property
    def name(self) -> str:
        """Of the form."""
        return "sigmoid-with-ceiling" if self.own_ceiling else "sigmoid"

    @property
    def formula(self) -> str:
        """In words."""
        top = "c" if self.own_ceiling else "1"
        return f"accuracy = {self.chance:g} + ({top} - {self.chance:g}) / (1 + exp(k*(L - L0)))"

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """In the order of theta."""
        return ("L0", "k", "c") if self.own_ceiling else ("L0", "k")

    def accuracy(self, theta: FloatArray, loss: FloatArray) -> FloatArray:
        """Of each loss.

        Args:
            theta: (parameters,) or (draws, parameters).
            loss: (points,), or (draws,) together with as many rows of theta.
        """
        middle, steepness = theta[..., 0], theta[..., 1]
        top = theta[..., 2] if self.own_ceiling else 1.0
        raised = np.clip(steepness * (loss - middle), -500.0, 500.0)
        return self.chance + (top - self.chance) / (1.0 + np.exp(raised))

    def starts(self, loss: FloatArray, accuracy: FloatArray) -> FloatArray:
        """(starts, parameters): the midpoint among the losses and beyond, gentle and steep, ceilings above the best."""
        span = max(float(np.ptp(loss)), 1e-3)
        best = float(accuracy.max())
        rows = [
            (middle, steepness, top)
            for middle in (loss.min() - span, loss.min(), float(np.median(loss)))
            for steepness in (2.0 / span, 8.0 / span)
            for top in ((min(1.0, best + 0.05), 1.0) if self.own_ceiling else (1.0,))
        ]
        lower, upper = self.bounds(loss)
        found = np.array(rows)[:, : len(self.parameter_names)]
        return np.clip(found, lower + 1e-6 * span, upper - 1e-6 * span)

    def bounds(self, loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Midpoints up to three spans of the losses below the lowest; ceilings above chance."""
        span = max(float(np.ptp(loss)), 1e-3)
        lower, upper = [float(loss.min()) - 3.0 * span, 1e-3], [float(loss.max()) + span, _STEEPEST]
        if self.own_ceiling:
            lower.append(self.chance + 0.01 * (1.0 - self.chance))
            upper.append(1.0 + 1e-9)
        return np.array(lower), np.array(upper)

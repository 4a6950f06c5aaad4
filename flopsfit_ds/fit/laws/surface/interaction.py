"""Size and data interact, over a floor."""

import numpy as np

from flopsfit_ds.fit.laws.base import Inputs, Linearised, Term
from flopsfit_ds.fit.laws.surface.kaplan import Kaplan
from flopsfit_ds.fit.laws.terms import floor_bounds, floor_term, pack_bounds
from flopsfit_ds.fit.losses import FloatArray


class Interaction(Kaplan):
    """L = E + ((Nc/N)^(alpha/beta) + Dc/D)^beta: size and data interact, over a floor."""

    name = "interaction"
    formula = "L = E + ((Nc/N)^(alpha/beta) + Dc/D)^beta"
    source = "Brandfonbrener et al. 2024, arXiv:2411.12925 (Kaplan's interaction of N and D, over a loss floor)"
    parameter_names = ("E", "log_A_centred", "log_B_centred", "alpha", "beta")
    _first = 1

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """Floor and mixed term."""
        shape = (theta.shape[0], inputs.n.shape[0])
        return [floor_term(theta[:, 0], shape), self._mixed_term(theta, inputs)]

    def bounds(self, log_loss: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As Kaplan, with the floor of Chinchilla."""
        return pack_bounds([floor_bounds(log_loss), *self._mixed_bounds(log_loss)])

    def grid(self) -> tuple[FloatArray, ...]:
        """Floor as a share of the smallest loss, beta and rho."""
        return np.array([0.1, 0.4, 0.6, 0.75, 0.85, 0.93]), np.geomspace(0.1, 1.2, 6), np.geomspace(0.4, 2.5, 5)

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """(L - E)^(1/beta) is linear in P and Q."""
        loss = np.exp(log_loss)[None, :]
        excess = loss - shape[:, :1] * np.exp(log_loss.min())
        middle = np.log(excess).mean(axis=1, keepdims=True)
        target = np.exp((np.log(excess) - middle) / shape[:, 1:2])
        by_size = np.exp(-np.outer(shape[:, 2], inputs.n))
        columns = np.stack([by_size, np.broadcast_to(np.exp(-inputs.d), by_size.shape)], axis=1)
        return Linearised(columns, target, shape[:, 1:2] * excess / loss)

    def assemble(self, shape: FloatArray, amplitudes: FloatArray, log_loss: FloatArray) -> FloatArray:
        """(E, ln A, ln B, alpha, beta)."""
        floor, beta, rho = shape[:, :1] * np.exp(log_loss.min()), shape[:, 1:2], shape[:, 2:3]
        middle = np.log(np.exp(log_loss)[None, :] - floor).mean(axis=1, keepdims=True)
        return np.concatenate([floor, beta * np.log(amplitudes) + middle, beta * rho, beta], axis=1)

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """As Kaplan, with the floor."""
        return {**super().natural(theta, inputs), "loss_floor": theta[:, 0]}

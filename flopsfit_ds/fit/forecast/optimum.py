"""What a fitted law says to train: the optimum at a budget, how flat it is, and that of a model that will serve."""

import math
from dataclasses import dataclass, field

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.laws.base import Inputs, Law
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.solve.intervals import Interval

FLAT_SHARE = 1e-3
"""Of the loss: half the 0.2% by which runs scatter in the studies, so that no run tells such sizes apart."""
INFERENCE_FLOPS_PER_PARAMETER_TOKEN = 2.0
"""Forward pass only: Kaplan et al. 2020, section 2.1."""
_WIDEST = math.log(1e4)
"""Sizes that are looked at on either side. The band of a law that is this flat says no more than that."""
_STEPS = 400  # 2.3% of a size; ends of the band are interpolated between them
FARTHEST = 600.0
"""exp() of more than 709 is beyond all doubles; sizes and tokens add up."""


@dataclass(frozen=True)
class Optimum:
    """The compute-optimal model at one budget.

    Attributes:
        compute: FLOPs.
        num_params: N*.
        num_tokens: D*.
        loss: L*.
        tokens_per_parameter: D*/N*.
        flat_band: (smallest, largest) N at this compute whose loss is within 0.1% of L*.
        intervals: Name -> confidence interval of num_params, num_tokens, loss, tokens_per_parameter; empty without
            resamples.
    """

    compute: float
    num_params: float
    num_tokens: float
    loss: float
    tokens_per_parameter: float
    flat_band: tuple[float, float]
    intervals: dict[str, Interval] = field(default_factory=dict)

    @property
    def flat_factor(self) -> float:
        """The factor f such that any N from N*/f to N* f costs less than 0.1% of loss."""
        return min(self.num_params / self.flat_band[0], self.flat_band[1] / self.num_params)


@dataclass(frozen=True)
class ServingOptimum:
    """The model that reaches a loss at the least compute for training and serving together.

    Source: Sardana et al. 2023, arXiv:2401.00448, eq. 1, with 2 FLOPs for each parameter and served token.

    Attributes:
        inference_tokens: Tokens the model will serve.
        loss: The loss to reach: that of the compute-optimal model of the training budget.
        num_params: Size.
        num_tokens: Training tokens.
        training_compute: FLOPs of training.
        total_compute: FLOPs of training and serving.
        saving: Share of total FLOPs saved against serving the compute-optimal model.
    """

    inference_tokens: float
    loss: float
    num_params: float
    num_tokens: float
    training_compute: float
    total_compute: float
    saving: float


@dataclass(frozen=True, eq=False)
class LawAt:
    """A law with its parameters, ready to be asked for losses and optima in plain units."""

    law: Law
    theta: FloatArray
    inputs: Inputs
    rule: ComputeRule

    def log_loss(self, log_n: FloatArray, log_d: FloatArray) -> FloatArray:
        """ln L at these ln N and ln D, (points,)."""
        return self.law.log_loss(self.theta[None], self.inputs.at(log_n, log_d))[0]

    def log_optimum(self, log_compute: float) -> float:
        """ln N* at this ln C.

        Raises:
            FitError: The law has no interior optimum.
        """
        log_n = float(self.law.log_optimum(self.theta[None], np.array([log_compute]), self.rule, self.inputs)[0, 0])
        if not math.isfinite(log_n):
            raise FitError(
                f"the fitted {self.law.name} law has no compute-optimal size: one of its terms does not fall"
            )
        return log_n

    def optimum(self, compute: float) -> Optimum:
        """The optimum at this compute, without intervals.

        Raises:
            FitError: The law has no interior optimum.
        """
        if not (math.isfinite(compute) and compute > 0):
            raise FitError(f"compute must be positive and finite, got {compute}")
        log_c = math.log(compute)
        log_n = self.log_optimum(log_c)
        log_d = float(self.rule.log_tokens(np.array(log_c), np.array(log_n)))
        if max(abs(log_n), abs(log_d)) > FARTHEST:
            raise FitError(
                f"the optimum of the fitted {self.law.name} law at {compute:.3g} FLOPs is beyond all numbers"
            )
        loss = math.exp(float(self.log_loss(np.array([log_n]), np.array([log_d]))[0]))
        return Optimum(
            compute,
            math.exp(log_n),
            math.exp(log_d),
            loss,
            math.exp(log_d - log_n),
            self._flat_band(log_c, log_n, loss),
        )

    def _flat_band(self, log_c: float, log_n: float, loss: float) -> tuple[float, float]:
        offsets = np.linspace(0.0, _WIDEST, _STEPS)
        limit = math.log(loss * (1.0 + FLAT_SHARE))
        ends: list[float] = []
        for sign in (-1.0, 1.0):
            sizes = log_n + sign * offsets
            values = self.log_loss(sizes, self.rule.log_tokens(np.array(log_c), sizes))
            above = np.flatnonzero(values > limit)
            if not above.size:
                ends.append(math.exp(sizes[-1]))
                continue
            k = int(above[0])
            share = (limit - values[k - 1]) / (values[k] - values[k - 1])
            ends.append(math.exp(sizes[k - 1] + share * (sizes[k] - sizes[k - 1])))
        return ends[0], ends[1]

    def serving_optimum(self, compute: float, inference_tokens: float) -> ServingOptimum:
        """The cheapest model, training and serving together, that is as good as the compute-optimal one of `compute`.

        Raises:
            FitError: No interior optimum, or a number of tokens that is negative or not finite.
        """
        if not (math.isfinite(inference_tokens) and inference_tokens >= 0):
            raise FitError(f"inference tokens must be finite and not negative, got {inference_tokens}")
        plain = self.optimum(compute)
        low, high = math.log(plain.num_params) - _WIDEST, math.log(plain.num_params)
        sizes = np.linspace(low, high, _STEPS)
        for step in (1.0, 1.0 / _STEPS, 0.0):
            log_d = self._tokens_for_loss(sizes, math.log(plain.loss), math.log(plain.num_tokens))
            training = np.exp(self.rule.log_flops(sizes, log_d))
            total = training + INFERENCE_FLOPS_PER_PARAMETER_TOKEN * np.exp(sizes) * inference_tokens
            best = int(np.argmin(np.where(np.isfinite(total), total, np.inf)))
            if step == 0.0:
                break
            half = step * (high - low) / _STEPS
            sizes = np.linspace(sizes[best] - half, sizes[best] + half, _STEPS)
        served = INFERENCE_FLOPS_PER_PARAMETER_TOKEN * plain.num_params * inference_tokens
        return ServingOptimum(
            inference_tokens,
            plain.loss,
            math.exp(sizes[best]),
            math.exp(log_d[best]),
            float(training[best]),
            float(total[best]),
            1.0 - float(total[best]) / (compute + served),
        )

    def _tokens_for_loss(self, log_n: FloatArray, log_loss: float, log_d_start: float) -> FloatArray:
        """ln D at which each size reaches the loss, infinite where it never does."""
        low, high = np.full_like(log_n, log_d_start - _WIDEST), np.full_like(log_n, log_d_start + 3 * _WIDEST)
        reachable = self.log_loss(log_n, high) <= log_loss
        for _ in range(60):
            middle = 0.5 * (low + high)
            enough = self.log_loss(log_n, middle) <= log_loss
            high, low = np.where(enough, middle, high), np.where(enough, low, middle)
        return np.where(reachable, high, np.inf)

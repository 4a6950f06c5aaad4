"""Predictions from a fit: the loss at a size and tokens, or at the optimum of a budget, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.forecast.optimum import FARTHEST
from flopsfit_ds.fit.laws.base import Inputs
from flopsfit_ds.fit.laws.registry import get_law
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.solve.intervals import Interval

_BISECTIONS = 60  # 2^-60 is below the rounding of a double
_TRUSTED_WEIGHT = 0.02
_RANGE = (1e-30, 1e60)


@dataclass(frozen=True)
class Prediction:
    """A predicted loss.

    Both intervals come from all forms of law (see `ensemble`). Where the points all but refute the fitted form (weight
    below 2%), its own loss may lie outside them.

    Attributes:
        compute: Training FLOPs.
        num_params: Parameters.
        num_tokens: Tokens.
        loss: Of the fitted law.
        level: Probability of both intervals.
        interval: Where the measured loss of one such run is expected (prediction interval).
        confidence_interval: Where the law itself lies there, run-to-run noise left out.
        extrapolation: Compute over the largest compute among the points of the fit; above 1 beyond the data.
    """

    compute: float
    num_params: float
    num_tokens: float
    loss: float
    level: float
    interval: Interval
    confidence_interval: Interval
    extrapolation: float

    def to_json_dict(self) -> dict[str, Any]:
        """Plain types; an unbounded end is None."""
        return {
            "compute": self.compute,
            "num_params": self.num_params,
            "num_tokens": self.num_tokens,
            "loss": self.loss,
            "level": self.level,
            "interval": interval_dict(self.interval),
            "confidence_interval": interval_dict(self.confidence_interval),
            "extrapolation": self.extrapolation,
        }


def interval_dict(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON can hold it: None for an unbounded end."""
    return {
        "low": interval.low if math.isfinite(interval.low) else None,
        "high": interval.high if math.isfinite(interval.high) else None,
    }


@dataclass(frozen=True, eq=False)
class FormDraws:
    """One form of law in the ensemble of predictions.

    Attributes:
        law: Its name.
        weight: Its share of the ensemble.
        theta: (parameters,), its best fit.
        draws: (samples, parameters), its resampled fits.
    """

    law: str
    weight: float
    theta: FloatArray
    draws: FloatArray


@dataclass(frozen=True, eq=False)
class PredictionModel:
    """All that a prediction needs; a fit's JSON carries it.

    Attributes:
        forms: The forms of law; the first is the one that was fitted, whose loss is reported.
        centre_n: Mean of ln N of the points.
        centre_d: Mean of ln D of the points.
        rule: How compute divides into N and D.
        noise: Standard deviation of ln L of one run about the law.
        spread: Factor on the spread of the resampled fits, from the rolling origin.
        largest_compute: Largest FLOPs among the points.
        level: Default level.
    """

    forms: tuple[FormDraws, ...]
    centre_n: float
    centre_d: float
    rule: ComputeRule
    noise: float
    spread: float
    largest_compute: float
    level: float

    def optimum(self, compute: float) -> tuple[float, float]:
        """N* and D* of the fitted law.

        Raises:
            FitError: The fitted law has no interior optimum.
        """
        inputs = Inputs(np.zeros(0), np.zeros(0), self.centre_n, self.centre_d)
        form = self.forms[0]
        log_c = np.array([math.log(compute)])
        log_n = get_law(form.law).log_optimum(form.theta[None], log_c, self.rule, inputs)[0, 0]
        if not math.isfinite(log_n):
            raise FitError(f"the fitted {form.law} law has no compute-optimal size; give --num-params and --num-tokens")
        log_d = float(self.rule.log_tokens(log_c, log_n)[0])
        if max(abs(log_n), abs(log_d)) > FARTHEST:
            raise FitError(f"the optimum of the fitted {form.law} law at {compute:.3g} FLOPs is beyond all numbers")
        return math.exp(log_n), math.exp(log_d)

    def predict(
        self,
        compute: float | None = None,
        *,
        num_params: float | None = None,
        num_tokens: float | None = None,
        level: float | None = None,
    ) -> Prediction:
        """Loss at the optimum of a compute budget, or at given parameters and tokens.

        Args:
            compute: FLOPs; alone it means the compute-optimal size, with one of N and D it gives the other.
            num_params: Parameters.
            num_tokens: Tokens.
            level: Probability of the intervals; None means that of the fit.

        Raises:
            FitError: Values that are not positive and finite, too few or too many of them, or a level outside (0, 1).
        """
        level = self.level if level is None else level
        if not 0.0 < level < 1.0:
            raise FitError(f"level must lie between 0 and 1, got {level}")
        compute, num_params, num_tokens = self._resolve(compute, num_params, num_tokens)
        log_losses, weights, central = self._ensemble(math.log(num_params), math.log(num_tokens))
        tail = 0.5 - 0.5 * level
        run = _mixture_interval(log_losses, weights, self.noise, tail)
        law = _mixture_interval(log_losses, weights, 0.0, tail)
        if self.forms[0].weight > _TRUSTED_WEIGHT:
            law = _including(law, central)
        run = _including(_including(run, law[0]), law[1])
        return Prediction(
            compute,
            num_params,
            num_tokens,
            math.exp(central),
            level,
            Interval(*(_exp(end) for end in run)),
            Interval(*(_exp(end) for end in law)),
            compute / self.largest_compute,
        )

    def _resolve(
        self, compute: float | None, num_params: float | None, num_tokens: float | None
    ) -> tuple[float, float, float]:
        for name, value in (("compute", compute), ("parameters", num_params), ("tokens", num_tokens)):
            if value is not None and not _RANGE[0] < value < _RANGE[1]:
                raise FitError(f"{name} must lie between {_RANGE[0]:g} and {_RANGE[1]:g}, got {value:g}")
        if num_params is not None and num_tokens is not None:
            if compute is not None:
                raise FitError("give compute, or parameters and tokens, not all three")
            log_c = self.rule.log_flops(np.array(math.log(num_params)), np.array(math.log(num_tokens)))
            return float(np.exp(log_c)), num_params, num_tokens
        if compute is None:
            raise FitError("give compute, or both parameters and tokens")
        log_c = math.log(compute)
        if num_params is not None:
            return (
                compute,
                num_params,
                float(np.exp(self.rule.log_tokens(np.array(log_c), np.array(math.log(num_params))))),
            )
        if num_tokens is not None:
            return compute, math.exp(self.rule.log_params(log_c, math.log(num_tokens))), num_tokens
        return compute, *self.optimum(compute)

    def _ensemble(self, log_n: float, log_d: float) -> tuple[FloatArray, FloatArray, float]:
        """Log losses of all draws of all forms, their weights, and the fitted law's own."""
        inputs = Inputs(
            np.array([log_n - self.centre_n]), np.array([log_d - self.centre_d]), self.centre_n, self.centre_d
        )
        values: list[FloatArray] = []
        weights: list[FloatArray] = []
        central = math.nan
        for form in self.forms:
            law = get_law(form.law)
            own = float(law.log_loss(form.theta[None], inputs)[0, 0])
            if math.isnan(central):
                central = own
            spread = own + self.spread * (law.log_loss(form.draws, inputs)[:, 0] - own)
            values.append(spread)
            weights.append(np.full(len(spread), form.weight / len(spread)))
        return np.concatenate(values), np.concatenate(weights), central

    def to_json_dict(self) -> dict[str, Any]:
        """Plain types; draws with eight digits."""
        return {
            "forms": [
                {
                    "law": f.law,
                    "weight": f.weight,
                    "theta": f.theta.tolist(),
                    "draws": [[float(f"{v:.8g}") for v in row] for row in f.draws],
                }
                for f in self.forms
            ],
            "centre_log_num_params": self.centre_n,
            "centre_log_num_tokens": self.centre_d,
            "compute_rule": {
                "log_sizes": list(self.rule.log_sizes),
                "log_ratios": list(self.rule.log_ratios),
                "description": self.rule.description,
            },
            "noise": self.noise,
            "spread": self.spread,
            "largest_compute": self.largest_compute,
            "level": self.level,
        }

    @classmethod
    def from_json_dict(cls, content: dict[str, Any]) -> "PredictionModel":
        """Read back what `to_json_dict` wrote.

        Raises:
            FitError: A part is missing or has another type.
        """
        try:
            forms = tuple(
                FormDraws(f["law"], float(f["weight"]), np.array(f["theta"], float), np.array(f["draws"], float))
                for f in content["forms"]
            )
            return cls(
                forms,
                float(content["centre_log_num_params"]),
                float(content["centre_log_num_tokens"]),
                _read_rule(content["compute_rule"]),
                float(content["noise"]),
                float(content["spread"]),
                float(content["largest_compute"]),
                float(content["level"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FitError(
                f"not the prediction part of a fit: {error!r}; write it again with flopsfit-ds fit"
            ) from error


def _read_rule(content: dict[str, Any]) -> ComputeRule:
    sizes, ratios = (tuple(float(v) for v in content[name]) for name in ("log_sizes", "log_ratios"))
    if not sizes or len(sizes) != len(ratios):
        raise ValueError("compute_rule needs as many log_ratios as log_sizes, and at least one")
    return ComputeRule(sizes, ratios, str(content["description"]))


def _exp(value: float) -> float:
    return math.exp(value) if value < FARTHEST else math.inf


def _including(ends: tuple[float, float], value: float) -> tuple[float, float]:
    return min(ends[0], value), max(ends[1], value)


def _mixture_interval(centres: FloatArray, weights: FloatArray, noise: float, tail: float) -> tuple[float, float]:
    """Quantiles of a mixture of normals of one width about the centres (plain quantiles where the width is nought)."""
    finite = np.isfinite(centres)
    if weights[~finite].sum() > tail:
        return -math.inf, math.inf
    centres, weights = centres[finite], weights[finite] / weights[finite].sum()
    if noise <= 0:
        order = np.argsort(centres)
        cumulative = np.cumsum(weights[order]) - 0.5 * weights[order]
        return tuple(float(np.interp(q, cumulative, centres[order])) for q in (tail, 1.0 - tail))  # type: ignore[return-value]
    return _quantile(centres, weights, noise, tail), _quantile(centres, weights, noise, 1.0 - tail)


def _quantile(centres: FloatArray, weights: FloatArray, noise: float, probability: float) -> float:
    from scipy.special import ndtr

    low, high = float(centres.min()) - 12.0 * noise, float(centres.max()) + 12.0 * noise
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if float(weights @ ndtr((middle - centres) / noise)) < probability:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def predict(
    fit: "PredictionModel | Any", computes: Sequence[float], *, level: float | None = None
) -> tuple[Prediction, ...]:
    """Predictions at the optimum of each compute budget, from a fit or the prediction model of its JSON."""
    model = fit if isinstance(fit, PredictionModel) else fit.prediction
    return tuple(model.predict(compute, level=level) for compute in computes)

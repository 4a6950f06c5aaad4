"""Predictions from a fit: the loss at a size and tokens, or at the optimum of a budget, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_things
from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.forecast.optimum import FARTHEST
from flopsfit_ds.fit.forecast.parts.frontier import offset_from_optimum
from flopsfit_ds.fit.forecast.parts.history import LEAST_DISTANCE
from flopsfit_ds.fit.forecast.repeats import MemberDraws, cost_of_repeats, decays_without_bound, robust_square
from flopsfit_ds.fit.laws.base import Inputs
from flopsfit_ds.fit.laws.registry import COMPUTE_ONLY, OF_REPEATS, get_law
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.ray import Ray
from flopsfit_ds.fit.quantiles import normal_quantile
from flopsfit_ds.fit.solve.intervals import Interval, student_factor

_RANGE = (1e-30, 1e60)  # far beyond all runs, and products of two are still doubles
_OF_NORMAL = 0.79
"""Half-width over that of a normal distribution: the parts of the variance overlap. With it 90% intervals cover 92%
of the predictions on six public tables of tuned runs, and 91% with two tables of runs that are not."""
_OF_NORMAL_ON_A_RAY = 0.9
"""The same on a ray, where one form alone is fitted and no spread between forms covers its error: with .79 intervals
covered 89% of 648 forecasts of planted rays (`calibrate_fit.py rays`) and 83% of 120 others, with 1 94%."""
_OF_DISAGREEMENT = 0.5
"""Share of the variance between members that enters: their weights already lean to the better ones."""
_OFF_THE_RAY = math.log(1.5)
"""Of ln D: a factor at which the loss of published laws at their optimum moves by a tenth of a percent to one."""


@dataclass(frozen=True)
class Prediction:
    """A predicted loss; it lies inside both intervals, whatever the points.

    Attributes:
        compute: Training FLOPs.
        num_params: Parameters.
        num_tokens: Tokens.
        loss: The centre of the ensemble.
        level: Probability of both intervals.
        interval: Where the measured loss of one such run is expected (prediction interval).
        confidence_interval: Where the mean of such runs lies, run-to-run noise left out.
        extrapolation: Compute over the largest compute among the points of the fit; above 1 beyond the data.
        law: The form that was asked for.
        law_loss: What it says alone.
        law_weight: Its share of the ensemble.
        rests_on: What the width of the intervals was learnt from.
        unique_tokens: Distinct tokens, where they were given.
        assumes_fresh: Whether no data repeats was assumed, though runs of the fit did repeat theirs.
        unbounded: Decay constants of repeated data, where some is predicted, that the runs of the fit do not bound
            from above.
    """

    compute: float
    num_params: float
    num_tokens: float
    loss: float
    level: float
    interval: Interval
    confidence_interval: Interval
    extrapolation: float
    law: str
    law_loss: float
    law_weight: float
    rests_on: str
    unique_tokens: float | None
    assumes_fresh: bool
    unbounded: tuple[str, ...]

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
            "law": self.law,
            "law_loss": self.law_loss,
            "law_weight": self.law_weight,
            "rests_on": self.rests_on,
            "unique_tokens": self.unique_tokens,
            "assumes_fresh": self.assumes_fresh,
            "unbounded": list(self.unbounded),
        }


def interval_dict(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON can hold it: None for an unbounded end."""
    return {
        "low": interval.low if math.isfinite(interval.low) else None,
        "high": interval.high if math.isfinite(interval.high) else None,
    }


@dataclass(frozen=True, eq=False)
class PredictionModel:
    """All that a prediction needs; a fit's JSON carries it.

    Attributes:
        law: The form that was asked for, whose optimum is reported.
        theta: (parameters,), its fit to all points alike.
        weight: Its share of the ensemble.
        members: The members of the ensemble.
        centre_n: Mean of ln N of the points.
        centre_d: Mean of ln D of the points.
        rule: How compute divides into N and D.
        noise: Standard deviation of ln L of one run about the law.
        drift: What is added to ln L of the centre, an e-fold of compute beyond the data.
        growth: Standard deviation of the error, an e-fold beyond the data.
        num_looks: Forecasts within the table that drift and growth were learnt from; nought for none.
        largest_compute: Largest FLOPs among the points.
        tokens_per_parameter: Smallest and largest D/N among the points.
        level: Default level.
        num_spare: Points less the parameters of the form that was asked for: few of them know their scatter badly.
        ray: Where all points lie on one line of tokens against size; None where they do not.
    """

    law: str
    theta: FloatArray
    weight: float
    members: tuple[MemberDraws, ...]
    centre_n: float
    centre_d: float
    rule: ComputeRule
    noise: float
    drift: float
    growth: float
    num_looks: int
    largest_compute: float
    tokens_per_parameter: tuple[float, float]
    level: float
    num_spare: int
    ray: Ray | None

    def optimum(self, compute: float) -> tuple[float, float]:
        """N* and D* of the fitted law; on a ray, what the ray trains at this compute.

        Raises:
            FitError: The fitted law has no interior optimum.
        """
        if self.ray is not None:
            ray_n = self.ray.log_params(math.log(compute), self.rule)
            return math.exp(ray_n), math.exp(self.ray.log_tokens(ray_n))
        inputs = Inputs(np.zeros(0), np.zeros(0), self.centre_n, self.centre_d)
        log_c = np.array([math.log(compute)])
        log_n = get_law(self.law).log_optimum(self.theta[None], log_c, self.rule, inputs)[0, 0]
        if not math.isfinite(log_n):
            raise FitError(f"the fitted {self.law} law has no compute-optimal size; give --num-params and --num-tokens")
        log_d = float(self.rule.log_tokens(log_c, log_n)[0])
        if max(abs(log_n), abs(log_d)) > FARTHEST:
            raise FitError(f"the optimum of the fitted {self.law} law at {compute:.3g} FLOPs is beyond all numbers")
        return math.exp(log_n), math.exp(log_d)

    def predict(
        self,
        compute: float | None = None,
        *,
        num_params: float | None = None,
        num_tokens: float | None = None,
        unique_tokens: float | None = None,
        level: float | None = None,
    ) -> Prediction:
        """Loss at the optimum of a compute budget, or at given parameters and tokens.

        Where data repeats, the forms of repeated data say what that costs against fresh data.

        Args:
            compute: FLOPs; alone it means the compute-optimal size, with one of N and D it gives the other.
            num_params: Parameters.
            num_tokens: Tokens.
            unique_tokens: Distinct ones among them; None for fresh data throughout.
            level: Probability of the intervals; None means that of the fit.

        Raises:
            FitError: Values that are not positive and finite, too few or too many of them, or a level outside (0, 1).
        """
        level = self.level if level is None else level
        if not 0.0 < level < 1.0:
            raise FitError(f"level must lie between 0 and 1, got {level}")
        compute, num_params, num_tokens = self._resolve(compute, num_params, num_tokens)
        log_n, log_d = math.log(num_params), math.log(num_tokens)
        if self.ray is not None and abs(log_d - self.ray.log_tokens(log_n)) > _OFF_THE_RAY:
            raise FitError(
                f"all runs of this fit lie on {self.ray.in_words}: a model of {num_params:.3g} parameters on "
                f"{num_tokens:.3g} tokens ({num_tokens / num_params:.3g} a parameter) is not on it, and what leaving "
                "it costs is not known; train some runs at other ratios"
            )
        inputs = Inputs(
            np.array([log_n - self.centre_n]), np.array([log_d - self.centre_d]), self.centre_n, self.centre_d
        )
        beyond = max(0.0, math.log(compute / self.largest_compute))
        centre, spread = self._centre_and_spread(inputs)
        centre += self.drift * beyond
        distance = max(LEAST_DISTANCE, beyond + self._off_the_grid(log_d - log_n))
        cost, of_cost = cost_of_repeats(self.members, inputs, unique_tokens, num_tokens)
        centre, spread = centre + cost, spread + of_cost
        spread *= student_factor(self.num_spare, level) ** 2
        variance = spread + (self.growth * distance) ** 2
        half = (_OF_NORMAL if self.ray is None else _OF_NORMAL_ON_A_RAY) * normal_quantile(0.5 + 0.5 * level)

        def interval(squared: float) -> Interval:
            width = half * math.sqrt(squared)
            return Interval(_exp(centre - width), _exp(centre + width))

        return Prediction(
            compute=compute,
            num_params=num_params,
            num_tokens=num_tokens,
            loss=_exp(centre),
            level=level,
            interval=interval(variance + self.noise**2),
            confidence_interval=interval(variance),
            extrapolation=compute / self.largest_compute,
            law=self.law,
            law_loss=_exp(float(get_law(self.law).log_loss(self.theta[None], inputs)[0, 0])),
            law_weight=self.weight,
            rests_on=self.rests_on,
            unique_tokens=unique_tokens,
            assumes_fresh=unique_tokens is None and any(m.law in OF_REPEATS for m in self.members),
            unbounded=() if unique_tokens is None else decays_without_bound(self.members, level),
        )

    @property
    def rests_on(self) -> str:
        """What the width of the intervals was learnt from, in words."""
        if not self.num_looks:
            return "no back-test (fewer than three budgets): the errors of other tables, doubled"
        return f"{format_things(self.num_looks, 'forecast')} within this table, and the errors of other tables"

    def _centre_and_spread(self, inputs: Inputs) -> tuple[float, float]:
        """Weighted mean of ln L, and the variance of what members and their resamples say of it."""
        weights = np.array([member.weight for member in self.members])
        own = np.array([self._says(m, m.theta[None], inputs)[0] for m in self.members])
        drawn = [self._says(m, m.draws, inputs) for m in self.members]
        squares = [robust_square(values - mine) for values, mine in zip(drawn, own, strict=True)]
        centre = float(weights @ own)
        return centre, float(weights @ squares + _OF_DISAGREEMENT * weights @ (own - centre) ** 2)

    def _says(self, member: MemberDraws, theta: FloatArray, inputs: Inputs) -> FloatArray:
        """ln L by each row of a member's parameters, (rows,).

        The frontier speaks of the best size of a budget; how much worse another size is, the fitted law says.
        """
        offset = 0.0
        if member.law == COMPUTE_ONLY and self.ray is None and self.law != COMPUTE_ONLY:
            found = offset_from_optimum(get_law(self.law), self.theta, self.rule, inputs)
            assert found is not None, "a frontier is a member only where the fitted law has an optimum"
            inputs, offset = found[0], float(found[1][0])
        return get_law(member.law).log_loss(theta, inputs)[:, 0] + offset

    def _off_the_grid(self, log_ratio: float) -> float:
        """E-folds by which a number of tokens per parameter lies outside those of the points."""
        low, high = (math.log(ratio) for ratio in self.tokens_per_parameter)
        return max(0.0, low - log_ratio, log_ratio - high)

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

    def to_json_dict(self) -> dict[str, Any]:
        """Plain types; draws with eight digits."""
        return {
            "law": self.law,
            "theta": get_law(self.law).stored(self.theta).tolist(),
            "weight": self.weight,
            "members": [
                {
                    "law": m.law,
                    "recency": m.recency,
                    "weight": m.weight,
                    "theta": get_law(m.law).stored(m.theta).tolist(),
                    "draws": [[float(f"{v:.8g}") for v in row] for row in get_law(m.law).stored(m.draws)],
                }
                for m in self.members
            ],
            "centre_log_num_params": self.centre_n,
            "centre_log_num_tokens": self.centre_d,
            "compute_rule": {
                "log_sizes": list(self.rule.log_sizes),
                "log_ratios": list(self.rule.log_ratios),
                "description": self.rule.description,
            },
            "noise": self.noise,
            "drift": self.drift,
            "growth": self.growth,
            "num_looks": self.num_looks,
            "largest_compute": self.largest_compute,
            "tokens_per_parameter": list(self.tokens_per_parameter),
            "level": self.level,
            "num_spare": self.num_spare,
            "ray": None if self.ray is None else asdict(self.ray),
        }

    @classmethod
    def from_json_dict(cls, content: dict[str, Any]) -> "PredictionModel":
        """Read back what `to_json_dict` wrote.

        Raises:
            FitError: A part is missing or has another type.
        """
        try:
            low, high = (float(ratio) for ratio in content["tokens_per_parameter"])
            return cls(
                law=str(content["law"]),
                theta=get_law(str(content["law"])).from_stored(np.array(content["theta"], float)),
                weight=float(content["weight"]),
                members=tuple(
                    MemberDraws(
                        m["law"],
                        float(m["recency"]),
                        float(m["weight"]),
                        get_law(m["law"]).from_stored(np.array(m["theta"], float)),
                        get_law(m["law"]).from_stored(np.array(m["draws"], float)),
                    )
                    for m in content["members"]
                ),
                centre_n=float(content["centre_log_num_params"]),
                centre_d=float(content["centre_log_num_tokens"]),
                rule=_read_rule(content["compute_rule"]),
                noise=float(content["noise"]),
                drift=float(content["drift"]),
                growth=float(content["growth"]),
                num_looks=int(content["num_looks"]),
                largest_compute=float(content["largest_compute"]),
                tokens_per_parameter=(low, high),
                level=float(content["level"]),
                num_spare=int(content["num_spare"]),
                ray=None if content.get("ray") is None else Ray(**{k: float(v) for k, v in content["ray"].items()}),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FitError(
                f"not the prediction part of a fit of this version: {error!r}; write it again with flopsfit-ds fit"
            ) from error


def _read_rule(content: dict[str, Any]) -> ComputeRule:
    sizes, ratios = (tuple(float(v) for v in content[name]) for name in ("log_sizes", "log_ratios"))
    if not sizes or len(sizes) != len(ratios):
        raise ValueError("compute_rule needs as many log_ratios as log_sizes, and at least one")
    return ComputeRule(sizes, ratios, str(content["description"]))


def _exp(value: float) -> float:
    return math.exp(value) if value < FARTHEST else math.inf


def predict(
    fit: "PredictionModel | Any", computes: Sequence[float], *, level: float | None = None
) -> tuple[Prediction, ...]:
    """Predictions at the optimum of each compute budget, from a fit or the prediction model of its JSON."""
    model = fit if isinstance(fit, PredictionModel) else fit.prediction
    return tuple(model.predict(compute, level=level) for compute in computes)

"""Before spending: what a planned sweep would tell, by the delta method about a prior law.

The expected standard errors are those of an M-estimator on the planned points under normal noise. They say how well a
design separates the parameters, given that the prior law is about right; they are no promise about form errors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.laws.base import Inputs
from flopsfit_ds.fit.laws.surface.chinchilla import Chinchilla
from flopsfit_ds.fit.losses import FloatArray, LossFunction, make_loss
from flopsfit_ds.fit.points.compute import compute_rule_of
from flopsfit_ds.fit.points.points import Point, PointArrays
from flopsfit_ds.fit.result import load_fit_dict
from flopsfit_ds.fit.run_noise import usual_noise
from flopsfit_ds.fit.solve.covariance import m_estimator_variance
from flopsfit_ds.spec.fit_options import DEFAULTS, TARGET_FACTOR

WORST_SIZE_ERROR = math.log(3.0)
"""One standard error of ln N*: beyond it N* is not known to within a decade, end to end."""
_RANK = 1e-9
"""Of eigenvalues: isoFLOP grids have condition numbers of 840 to 4,300 (`calibrate_fit.py figures`), rounding 1e15."""
_NUDGE = 1e-4  # central differences: 1e-8 off by curvature, 2e-12 by rounding


@dataclass(frozen=True)
class PriorLaw:
    """The Chinchilla law that a design is judged about.

    The defaults are those of Besiroglu et al. 2024, arXiv:2404.10102, table 1, for large language models; the standard
    errors depend on the exponents and on the share of each term, not on the units of loss.
    """

    loss_floor: float = 1.8172
    A: float = 482.01
    B: float = 2085.43
    alpha: float = 0.3478
    beta: float = 0.3658


def load_prior(path: str | Path) -> PriorLaw:
    """The law of an earlier fit's JSON as a prior.

    Raises:
        FitError: The file is no fit, or its law is of another form.
    """
    law = load_fit_dict(path).get("law")
    form = law.get("form") if isinstance(law, dict) else None
    if not isinstance(law, dict) or form not in ("chinchilla", "chinchilla-tied"):
        raise FitError(f"{path} holds a {form} law; a preview takes a chinchilla law as its prior")
    try:
        values = [float(law[name]) for name in ("loss_floor", "A", "B", "alpha", "beta")]
    except (KeyError, TypeError, ValueError) as error:
        raise FitError(f"{path} misses a part of its law: {error!r}; write it again with flopsfit-ds fit") from error
    if not all(math.isfinite(v) and v > 0 for v in values):
        raise FitError(f"{path}: every parameter of a prior law must be positive and finite, got {values}")
    return PriorLaw(*values)


@dataclass(frozen=True)
class PlannedPoint:
    """One planned run.

    Attributes:
        num_params: Parameters.
        num_tokens: Training tokens.
        flops: Training FLOPs; None means 6 N D.
        label: For people.
        gpu_hours: Expected cost; None where unknown.
    """

    num_params: float
    num_tokens: float
    flops: float | None = None
    label: str | None = None
    gpu_hours: float | None = None

    def as_point(self) -> Point:
        """The same size and tokens, with a loss of one."""
        return Point(self.num_params, self.num_tokens, 1.0, flops=self.flops, label=self.label)


@dataclass(frozen=True)
class PointValue:
    """What one planned run costs and adds.

    Attributes:
        label: For people.
        num_params: Parameters.
        num_tokens: Tokens.
        flops: Training FLOPs.
        share_of_flops: Of the sweep.
        gpu_hours: Expected cost; None where unknown.
        adds: By how much the standard error of ln N* at the target would grow without this run (0.1: by 10%); infinite
            where the law could not be identified without it.
    """

    label: str | None
    num_params: float
    num_tokens: float
    flops: float
    share_of_flops: float
    gpu_hours: float | None
    adds: float


@dataclass(frozen=True)
class DesignPreview:
    """What a planned sweep would tell.

    Attributes:
        target_compute: FLOPs at which the optimum is asked for.
        noise: Assumed standard deviation of ln L between runs.
        num_params: N* there under the prior law.
        num_tokens: D* there.
        loss: L* there.
        log_num_params_standard_error: Expected, of ln N*.
        log_num_tokens_standard_error: Expected, of ln D*.
        log_loss_standard_error: Expected, of ln L*.
        parameter_standard_errors: Expected, of E, alpha, beta and a.
        points: Cost and value of each run.
        total_flops: Of the sweep.
        compute_rule: How compute divides into N and D.
    """

    target_compute: float
    noise: float
    num_params: float
    num_tokens: float
    loss: float
    log_num_params_standard_error: float
    log_num_tokens_standard_error: float
    log_loss_standard_error: float
    parameter_standard_errors: dict[str, float]
    points: tuple[PointValue, ...]
    total_flops: float
    compute_rule: str

    def to_json_dict(self) -> dict[str, Any]:
        """Plain types; an infinite value of a run is None."""
        content = {k: v for k, v in self.__dict__.items() if k != "points"}
        points = [{**p.__dict__, "adds": p.adds if math.isfinite(p.adds) else None} for p in self.points]
        return {**content, "points": points}


def preview_design(
    points: Sequence[PlannedPoint],
    *,
    noise: float | None = None,
    target_compute: float | None = None,
    prior: PriorLaw | None = None,
    loss: str = DEFAULTS.loss,
    huber_delta: float = DEFAULTS.huber_delta,
) -> DesignPreview:
    """Expected standard errors of a planned sweep, and the cost and value of each of its runs.

    Args:
        points: The planned runs.
        noise: Standard deviation of ln L between runs; None means what sweeps of such compute showed (see `run_noise`).
        target_compute: FLOPs of the run to be planned; None means ten times the largest run.
        prior: The law that is about right.
        loss: Loss function of the fit to come.
        huber_delta: Its delta.

    Raises:
        FitError: A plan that cannot identify the law, with the change that would mend it; noise that is not positive.
    """
    if noise is None:
        noise = usual_noise([point.as_point().compute_flops for point in points]) if points else 1.0
    if not (math.isfinite(noise) and noise > 0):
        raise FitError(f"the noise level must be positive, got {noise}; without one it is what such sweeps showed")
    if target_compute is not None and not (math.isfinite(target_compute) and target_compute > 0):
        raise FitError(f"the target compute must be positive and finite, got {target_compute}")
    score = make_loss(loss, huber_delta)
    design = _Design.of(points, prior or PriorLaw(), noise, score, target_compute)
    errors = design.errors()
    reason = design.refusal(errors)
    if reason is not None:
        raise FitError(f"{reason}; {design.remedy()}")
    return design.report(points, errors)


@dataclass(frozen=True)
class _Errors:
    log_n: float
    log_d: float
    log_loss: float
    natural: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Design:
    """A design, the prior in its coordinates, and the Jacobian of its points."""

    planned: tuple[PlannedPoint, ...]
    prior: PriorLaw
    noise: float
    score: LossFunction
    target: float
    rule: ComputeRule
    inputs: Inputs
    theta: FloatArray
    jacobian: FloatArray

    @classmethod
    def of(
        cls, planned: Sequence[PlannedPoint], prior: PriorLaw, noise: float, score: LossFunction, target: float | None
    ) -> "_Design":
        if not planned:
            raise FitError("the plan has no runs; give at least two budgets of five sizes")
        arrays = PointArrays.of([p.as_point() for p in planned])
        rule = compute_rule_of(arrays)
        inputs = Inputs.centred(arrays.num_params, arrays.num_tokens)
        theta = np.array(
            [
                prior.loss_floor,
                math.log(prior.A) - prior.alpha * inputs.centre_n,
                math.log(prior.B) - prior.beta * inputs.centre_d,
                prior.alpha,
                prior.beta,
            ]
        )
        jacobian = Chinchilla().evaluate(theta[None], inputs).jacobian()[0]
        goal = target if target is not None else TARGET_FACTOR * float(arrays.flops.max())
        return cls(tuple(planned), prior, noise, score, goal, rule, inputs, theta, jacobian)

    def errors(self, keep: np.ndarray | None = None) -> _Errors | None:
        """Expected errors from the points in `keep`; None where they cannot identify the law."""
        jacobian = self.jacobian if keep is None else self.jacobian[:, keep]
        scale = np.sqrt((self.jacobian**2).sum(axis=1))
        if (scale == 0).any() or jacobian.shape[1] < jacobian.shape[0]:
            return None
        unit = jacobian / scale[:, None]
        values, vectors = np.linalg.eigh(unit @ unit.T)
        if values[0] <= _RANK * values[-1]:
            return None
        variance = m_estimator_variance(self.score, self.noise)
        covariance = variance * ((vectors / values) @ vectors.T) / np.outer(scale, scale)

        def error(slope: FloatArray) -> float:
            return math.sqrt(max(0.0, float(slope @ covariance @ slope)))

        slopes = self._slopes()
        natural = {name: error(slopes[name]) for name in ("loss_floor", "alpha", "beta", "a")}
        return _Errors(error(slopes["log_n"]), error(slopes["log_d"]), error(slopes["log_loss"]), natural)

    def _slopes(self) -> dict[str, FloatArray]:
        """Derivatives of the target's quantities with respect to theta, by central differences."""
        steps = np.concatenate([_NUDGE * np.eye(5), -_NUDGE * np.eye(5)])
        values = self._quantities(self.theta[None] + steps)
        return {name: (value[:5] - value[5:]) / (2 * _NUDGE) for name, value in values.items()}

    def _quantities(self, theta: FloatArray) -> dict[str, FloatArray]:
        law, log_c = Chinchilla(), np.array([math.log(self.target)])
        log_n = law.log_optimum(theta, log_c, self.rule, self.inputs)[:, 0]
        log_d = self.rule.log_tokens(log_c, log_n)
        natural = law.natural(theta, self.inputs)
        return {
            "log_n": log_n,
            "log_d": log_d,
            "log_loss": np.diagonal(law.log_loss(theta, self.inputs.at(log_n, log_d))),
            "loss_floor": natural["loss_floor"],
            "alpha": natural["alpha"],
            "beta": natural["beta"],
            "a": law.size_exponent_of_compute(theta),
        }

    def refusal(self, errors: _Errors | None) -> str | None:
        """Why the plan cannot identify the law, or None."""
        n, d = self.inputs.n, self.inputs.d
        pairs = len({(round(float(a), 4), round(float(b), 4)) for a, b in zip(n, d, strict=True)})
        log_c = np.log(np.array([p.as_point().compute_flops for p in self.planned], dtype=np.float64))
        if pairs < 6:
            return f"{pairs} distinct points cannot carry the 5 parameters of a law"
        if np.ptp(n) < 0.05:
            return "all runs have one size"
        for values, what in ((n, "sizes"), (d, "numbers of tokens")):
            count = len(set(np.round(values, 4).tolist()))
            if count < 3:
                return f"{count} different {what} cannot carry a floor, an amplitude and an exponent"
        if errors is not None and errors.log_n <= WORST_SIZE_ERROR:
            return None
        if np.ptp(log_c) < 0.12:
            return "all runs lie at one compute budget"
        slope = float((n * d).sum() / (n * n).sum())
        if float(np.std(d - slope * n)) < 0.1:
            ratio = math.exp(float((d - n).mean()) + self.inputs.centre_d - self.inputs.centre_n)
            return f"all runs lie on a single ray of about {ratio:.3g} tokens per parameter, which cannot identify N*"
        found = "no bound" if errors is None else f"a factor of {math.exp(min(50.0, errors.log_n)):.2g} either way"
        return f"N* at {format_flops(self.target)} FLOPs would be known to {found}, at {self.noise:.2%} noise"

    def remedy(self) -> str:
        """The smallest change, of a few kinds, that lets the plan identify N*."""
        best: tuple[float, str] | None = None
        for words, extra in _changes(self.planned):
            try:
                changed = _Design.of((*self.planned, *extra), self.prior, self.noise, self.score, self.target)
            except FitError:
                continue
            errors = changed.errors()
            if errors is None:
                continue
            if errors.log_n <= WORST_SIZE_ERROR:
                return f"{words}: then N* would be known to a factor of {math.exp(errors.log_n):.2g}"
            if best is None or errors.log_n < best[0]:
                best = errors.log_n, words
        if best is not None and best[0] < 20:
            factor = math.exp(best[0])
            return f"{best[1]} is the best single change (a factor of {factor:.2g}); lower the noise with more seeds"
        return "plan at least three budgets a factor of three apart, with five sizes over a factor of ten on each"

    def report(self, planned: Sequence[PlannedPoint], errors: _Errors | None) -> DesignPreview:
        """The preview of a design that was not refused."""
        assert errors is not None
        flops = [p.as_point().compute_flops for p in planned]
        total = sum(flops)
        everyone = np.arange(len(planned))
        values: list[PointValue] = []
        for k, point in enumerate(planned):
            without = self.errors(everyone != k)
            adds = math.inf if without is None else without.log_n / errors.log_n - 1.0
            size = point.num_params, point.num_tokens
            values.append(PointValue(point.label, *size, flops[k], flops[k] / total, point.gpu_hours, adds))
        at = {name: float(value[0]) for name, value in self._quantities(self.theta[None]).items()}
        return DesignPreview(
            target_compute=self.target,
            noise=self.noise,
            num_params=math.exp(at["log_n"]),
            num_tokens=math.exp(at["log_d"]),
            loss=math.exp(at["log_loss"]),
            log_num_params_standard_error=errors.log_n,
            log_num_tokens_standard_error=errors.log_d,
            log_loss_standard_error=errors.log_loss,
            parameter_standard_errors=errors.natural,
            points=tuple(values),
            total_flops=total,
            compute_rule=self.rule.description,
        )


def _changes(planned: Sequence[PlannedPoint]) -> list[tuple[str, list[PlannedPoint]]]:
    """Changes that might mend a plan, cheapest first."""
    distinct = list({(p.num_params, p.num_tokens): p for p in planned}.values())
    sizes = sorted({p.num_params for p in distinct})
    middle = sorted(distinct, key=lambda p: p.as_point().compute_flops)[len(distinct) // 2]

    def scaled(points: Sequence[PlannedPoint], size: float, tokens: float) -> list[PlannedPoint]:
        return [
            replace(p, num_params=size * p.num_params, num_tokens=tokens * p.num_tokens, flops=None, label=None)
            for p in points
        ]

    wide = [q for f in (0.1, 0.3, 3.0, 10.0) for q in scaled([middle], f, 1.0 / f)]
    at = format_flops(middle.as_point().compute_flops)
    third = [q for f in (1 / 9, 1 / 3, 3.0) for q in scaled(distinct, f**0.5, f**0.5)]
    rungs = f"{format_count(sizes[0])} to {format_count(sizes[-1])}"
    return [
        ("train the two smallest sizes with 4 times as many tokens too", scaled(distinct[:2], 1.0, 4.0)),
        ("train every size with a quarter of its tokens too", scaled(distinct, 1.0, 0.25)),
        (f"train sizes from 0.1 to 10 times {format_count(middle.num_params)} at {at} FLOPs too", wide),
        (
            f"train every size ({rungs}) with a quarter and with four times its tokens too",
            [*scaled(distinct, 1.0, 0.25), *scaled(distinct, 1.0, 4.0)],
        ),
        ("add budgets at a ninth, a third and three times the present ones", third),
        ("add both: other tokens for every size, and those budgets", [*third, *wide, *scaled(distinct, 1.0, 0.25)]),
    ]

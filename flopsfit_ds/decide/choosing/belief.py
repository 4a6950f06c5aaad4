"""What is believed of the loss surface, in a few directions: the forms of law, their parameters, and mistuning.

A form's parameters are uncertain by their Fisher information on the runs at hand; the forms disagree; small runs may be
mistuned; and the loss, and the valley, may turn away from any form as compute grows, as fast as forecasts of these runs
went wrong. All of it is one linear-normal belief: ln L at any run, and ln N*, ln D* and ln L* at the target, are sums
of few independent standard normal directions. What another run would teach is then known before it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.forecast.prediction import PredictionModel
from flopsfit_ds.fit.laws.base import Inputs, Law
from flopsfit_ds.fit.laws.registry import LAWS
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import Point
from flopsfit_ds.fit.points.selection import learning_rate_groups

RECENCY = 0.8
"""The variance of a run grows so as its compute falls short of the largest: forms are wrong far from the target. The
faster of the two rates at which forecasts weigh runs."""
MISTUNING = 0.003
"""Standard deviation of the excess of ln L an e-fold of size, where learning rates were not tried."""
TUNING_NOISE = math.sqrt(1.5)
"""Times the noise of a run: the best of three learning rates against one, where all carry noise."""
VALLEY_TURN = 0.03
"""Standard deviation of a turn of ln N* an e-fold of compute: exponents of published studies differ by as much."""
_KNOTS = 4
"""Where the valley may turn, from the least compute to the target. Chosen: over five decades one a decade or so."""
OFF_THE_VALLEY = 1.0
"""Times the noise of a run that the forms are wrong by, an e-fold of size off the best one."""
_PRIOR_EXPONENT = 0.3
"""Standard deviation of an exponent: published ones lie between .15 and .8."""
_PRIOR_AMPLITUDE = 3.0
"""Of the logarithm of an amplitude: a factor of twenty. Chosen, wide."""
_LEAST_WEIGHT = 1e-3
"""A form with less would move the target's mean by a thousandth of its disagreement."""
_FARTHEST = 2.0
"""Standard deviations between forms that count at the target, at most: one wild form must not decide."""
_NUDGE = 1e-4
"""Of a parameter, for central differences: their error is of the order of its square, that of rounding 1e-12."""


@dataclass(frozen=True, eq=False)
class Place:
    """Sizes and tokens of runs, by column.

    Attributes:
        log_n: (runs,).
        log_d: (runs,).
        log_c: (runs,).
    """

    log_n: FloatArray
    log_d: FloatArray
    log_c: FloatArray

    @classmethod
    def of(cls, points: Sequence[Point]) -> Place:
        """Of runs that were trained."""
        columns = [(p.num_params, p.num_tokens, p.compute_flops) for p in points]
        log_n, log_d, log_c = np.log(np.array(columns, dtype=np.float64)).T
        return cls(log_n, log_d, log_c)


@dataclass(frozen=True, eq=False)
class Belief:
    """Directions of what is not known.

    Attributes:
        members: (law, theta, weight, covariance of theta and of what the forms leave out) of each form.
        centre_n: Of ln N.
        centre_d: Of ln D.
        rule: How compute divides.
        noise: Standard deviation of ln L of one run near the target.
        log_reference: ln C from which the noise of runs grows downwards.
        largest_n: ln N from which mistuning grows downwards.
        knots: ln C at which the drift of loss and of the valley may turn.
        growth: Standard deviation of a turn of ln L, an e-fold of compute.
    """

    members: tuple[tuple[Law, FloatArray, float, FloatArray], ...]
    centre_n: float
    centre_d: float
    rule: ComputeRule
    noise: float
    log_reference: float
    largest_n: float
    knots: FloatArray
    growth: float

    @classmethod
    def of(cls, model: PredictionModel, points: Sequence[Point], log_reference: float, log_target: float) -> Belief:
        """From the ensemble of a fit and its runs.

        Raises:
            FitError: The ensemble has no form of law in N and D.
        """
        seen = Place.of(points)
        noise = max(model.noise, 1e-5)
        largest = float(seen.log_n.max())
        tried = [math.log(next(iter(group.values()))[0].num_params) for group in learning_rate_groups(points)]
        shown = np.array([max(0.0, largest - size) for size in tried]) / (TUNING_NOISE * noise)
        forms = _forms(model)
        if not forms:
            raise FitError("no form of law that these runs carry says what an unseen run would give")
        total = sum(weight for _, _, weight in forms)
        knots = np.linspace(float(seen.log_c.min()), log_target, _KNOTS + 1)[:-1]
        blank = cls(
            members=tuple((law, theta, weight / total, np.zeros((0, 0))) for law, theta, weight in forms),
            centre_n=model.centre_n,
            centre_d=model.centre_d,
            rule=model.rule,
            noise=noise,
            log_reference=log_reference,
            largest_n=largest,
            knots=knots,
            growth=model.growth,
        )
        scale, beside = blank.noise_of(seen), blank._beside(seen)
        found: list[tuple[Law, FloatArray, float, FloatArray]] = []
        for law, theta, weight, _ in blank.members:
            slopes = law.evaluate(theta[None], blank._at(seen.log_n, seen.log_d)).jacobian()[0]
            jacobian = np.vstack([slopes, beside]) / scale
            information = jacobian @ jacobian.T
            information[len(theta), len(theta)] += float(shown @ shown)
            prior = np.array([*(_prior(law, k, theta) for k in range(len(theta))), *_priors_beside()])
            found.append((law, theta, weight, np.linalg.inv(information + np.diag(prior**-2.0))))
        return replace(blank, members=tuple(found))

    def of_runs(self, place: Place) -> FloatArray:
        """Directions of ln L at runs, (runs, directions)."""
        inputs, beside = self._at(place.log_n, place.log_d), self._beside(place)
        values = np.stack([law.log_loss(theta[None], inputs)[0] for law, theta, _, _ in self.members])
        slopes = [
            np.vstack([law.evaluate(theta[None], inputs).jacobian()[0], beside]) for law, theta, _, _ in self.members
        ]
        return self._joined(values, slopes)

    def of_tuning(self, place: Place) -> FloatArray:
        """Directions of the excess of ln L that trying other learning rates shows, (runs, directions)."""
        beside = self._beside(place)
        beside[1:] = 0.0
        slopes = [np.vstack([np.zeros((len(theta), beside.shape[1])), beside]) for _, theta, _, _ in self.members]
        return self._joined(np.zeros((len(self.members), beside.shape[1])), slopes)

    def _beside(self, place: Place) -> FloatArray:
        """What the forms leave out of ln L at runs: mistuning, turns of the loss, turns of the valley; (rows, runs)."""
        below = np.maximum(0.0, self.largest_n - place.log_n)
        turns = np.maximum(0.0, place.log_c[None, :] - self.knots[:, None])
        return np.vstack([below, self.growth * turns, -self._curvature(place) * self._off(place) * VALLEY_TURN * turns])

    def _off(self, place: Place) -> FloatArray:
        """ln N over the best size at its compute, by the heaviest form; nought where that has none."""
        law, theta, _, _ = max(self.members, key=lambda member: member[2])
        best = law.log_optimum(theta[None], place.log_c, self.rule, self._at(np.zeros(1), np.zeros(1)))[0]
        return np.where(np.isfinite(best), place.log_n - best, 0.0)

    def _curvature(self, place: Place) -> FloatArray:
        """Second derivative of ln L with ln N at the best size of each compute, by the heaviest form."""
        law, theta, _, _ = max(self.members, key=lambda member: member[2])
        best = place.log_n - self._off(place)
        sides = [best + step for step in (-0.2, 0.0, 0.2)]
        low, middle, high = (
            law.log_loss(theta[None], self._at(n, self.rule.log_tokens(place.log_c, n)))[0] for n in sides
        )
        return np.maximum(0.0, low - 2 * middle + high) / 0.04

    def of_target(self, log_compute: float) -> tuple[FloatArray, FloatArray]:
        """ln N*, ln D* and ln L* at a compute, (3,), and their directions, (3, directions).

        Raises:
            FitError: No form has an optimum there.
        """
        values, slopes, weights = [], [], []
        for law, theta, weight, _ in self.members:
            step = np.concatenate([np.zeros((1, len(theta))), _NUDGE * np.eye(len(theta))])
            ahead, behind = self._optimum(law, theta + step, log_compute), self._optimum(law, theta - step, log_compute)
            usable = np.isfinite(ahead).all() and np.isfinite(behind).all()
            values.append(ahead[:, 0] if usable else np.full(3, np.nan))
            slope = (ahead - behind)[:, 1:] / (2 * _NUDGE) if usable else np.zeros((3, len(theta)))
            turns = np.maximum(0.0, log_compute - self.knots)
            shift = np.outer(VALLEY_TURN * turns, [1.0, -1.0, 0.0])
            rise = np.outer(self.growth * turns, [0.0, 0.0, 1.0])
            slopes.append(np.vstack([slope.T, np.zeros((1, 3)), rise, shift]))
            weights.append(weight if usable else 0.0)
        if not any(weights):
            raise FitError(f"no form of law has an optimum at {math.exp(log_compute):.3g} FLOPs; widen the grid first")
        known = np.array(values)
        centre = np.nansum(known * np.array(weights)[:, None], axis=0) / sum(weights)
        known = np.where(np.isfinite(known), known, centre)
        away = known - centre
        spread = np.sqrt(np.average(away**2, axis=0, weights=weights)) + 1e-12
        known = centre + np.clip(away, -_FARTHEST * spread, _FARTHEST * spread)
        return centre, self._joined(known, slopes)

    def noise_of(self, place: Place) -> FloatArray:
        """Standard deviation of ln L about the forms, (runs,): larger far from the target, and off the valley."""
        short = np.exp(0.5 * RECENCY * np.maximum(0.0, self.log_reference - place.log_c))
        return self.noise * short * np.hypot(1.0, OFF_THE_VALLEY * self._off(place))

    def _optimum(self, law: Law, theta: FloatArray, log_compute: float) -> FloatArray:
        """ln N*, ln D*, ln L* of each row, (3, rows)."""
        inputs = self._at(np.zeros(1), np.zeros(1))
        log_n = law.log_optimum(theta, np.array([log_compute]), self.rule, inputs)[:, 0]
        log_d = self.rule.log_tokens(np.array(log_compute), log_n)
        with np.errstate(over="ignore", invalid="ignore"):
            loss = np.diagonal(law.log_loss(theta, self._at(log_n, log_d)))
        return np.stack([log_n, log_d, loss])

    def _joined(self, values: FloatArray, slopes: Sequence[FloatArray]) -> FloatArray:
        """Directions of quantities from each form's value (forms, quantities) and slopes (parameters, quantities)."""
        weights = np.array([weight for _, _, weight, _ in self.members])
        centre = weights @ values
        columns: list[FloatArray] = []
        for (_, _, weight, covariance), value, slope in zip(self.members, values, slopes, strict=True):
            root = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(covariance)))
            columns.append(math.sqrt(weight) * slope.T @ root)
            columns.append((math.sqrt(weight) * (value - centre))[:, None])
        return np.concatenate(columns, axis=1)

    def _at(self, log_n: FloatArray, log_d: FloatArray) -> Inputs:
        return Inputs(log_n - self.centre_n, log_d - self.centre_d, self.centre_n, self.centre_d)


def _forms(model: PredictionModel) -> list[tuple[Law, FloatArray, float]]:
    """Each form of law in N and D once, at its heavier member, with its whole weight."""
    parts: dict[str, list[tuple[float, FloatArray]]] = {}
    for member in model.members:
        if member.law in LAWS:
            parts.setdefault(member.law, []).append((member.weight, member.theta))
    found: list[tuple[Law, FloatArray, float]] = []
    for name, of_form in parts.items():
        weight = sum(w for w, _ in of_form)
        if weight >= _LEAST_WEIGHT:
            found.append((LAWS[name], max(of_form, key=lambda part: part[0])[1], weight))
    return found


def _priors_beside() -> list[float]:
    """Standard deviations of mistuning and of all turns before any run."""
    return [MISTUNING, *[1.0] * (2 * _KNOTS)]


def _prior(law: Law, index: int, theta: FloatArray) -> float:
    """Standard deviation of a parameter before any run: wide, so that few runs leave no direction without a bound."""
    name = law.parameter_names[index]
    if name == "E":
        return 0.5 * max(abs(float(theta[index])), 0.1)
    return _PRIOR_AMPLITUDE if name.startswith("log_") else _PRIOR_EXPONENT

"""Compare two recipes: the effective-compute multiplier, with its interval, and whether the difference is real.

A multiplier of 1.2 at a compute means that A needs 1.2 times as much to reach the loss that B reaches with it: B is
better. Both losses must be of the same held-out data and tokenizer; no table can tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.decide.comparing.frontier import Frontier, grid_of, log_multipliers
from flopsfit_ds.decide.comparing.matched import Matched, match_runs
from flopsfit_ds.decide.sources import Source
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.selection import select_points
from flopsfit_ds.fit.solve.intervals import Interval, student_factor
from flopsfit_ds.spec.fit_options import DEFAULTS, TARGET_FACTOR

Verdict = Literal["B is better", "A is better", "they cross", "no difference is shown"]
_LOOKS = 25
"""Computes within the shared range at which a difference is looked for, together."""
_LEAST_SHARED = math.log(2.0)
_TAIL = 0.05
"""Share of the runs on either side of the computes at which a difference is looked for: a single run far off all others
says little of a law there, and the widest place decides a joint band."""


@dataclass(frozen=True)
class Multiplier:
    """The multiplier at one compute.

    Attributes:
        compute: FLOPs of B.
        value: Compute of A for the same loss, over it; infinite where A never reaches that loss.
        interval: At the level of the comparison.
        beyond: Compute over the largest that both recipes were run at; above 1 it is extrapolated.
    """

    compute: float
    value: float
    interval: Interval
    beyond: float


@dataclass(frozen=True)
class Crossing:
    """Where the better of the two changes.

    Attributes:
        compute: FLOPs.
        interval: Of the resamples that cross.
        share: Of resamples that cross within the shared range.
    """

    compute: float
    interval: Interval
    share: float


@dataclass(frozen=True)
class Comparison:
    """Two recipes side by side.

    Attributes:
        a: Name of the first.
        b: Name of the second.
        num_points: Runs of each that were fitted.
        law: Form of law that was fitted to both.
        level: Probability of the intervals, and of no false difference.
        shared: Smallest and largest compute that both were run at.
        multipliers: At several computes.
        curve: Over the computes that hold nine tenths of the runs of both, with bands that hold together.
        crossing: Where the fits cross within the shared range; None where they do not.
        matched: From pairs of runs of the same size and tokens; None where there are none.
        verdict: Whether a difference is shown where both were run, by the curve's bands or by the mean of the pairs:
            each with half of the chance to be wrong.
    """

    a: str
    b: str
    num_points: tuple[int, int]
    law: str
    level: float
    shared: tuple[float, float]
    multipliers: tuple[Multiplier, ...]
    curve: tuple[Multiplier, ...]
    crossing: Crossing | None
    matched: Matched | None
    verdict: Verdict

    def to_json_dict(self) -> dict[str, Any]:
        """Plain types; an unbounded number is None."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare_runs(
    a: Source,
    b: Source,
    *,
    computes: Sequence[float] = (),
    law: str = DEFAULTS.law,
    level: float = DEFAULTS.level,
    seed: int = 0,
) -> Comparison:
    """Compare two recipes by their runs.

    Args:
        a: The one that is measured against.
        b: The other.
        computes: FLOPs at which the multiplier is asked for; without them three over the shared range, and one ten
            times beyond.
        law: Form of law fitted to both.
        level: Probability of the intervals.
        seed: Of the resampling.

    Raises:
        FitError: One of them carries no law, they share less than a factor of two of compute, or an option is off.
    """
    if not 0 < level < 1:
        raise FitError(f"level must lie between 0 and 1, got {level}")
    wrong = [compute for compute in computes if not 0 < compute < math.inf]
    if wrong:
        raise FitError(f"compute must be positive and finite, got {wrong[0]}")
    chosen = [select_points(source.points).points for source in (a, b)]
    for source, points in zip((a, b), chosen, strict=True):
        if not points:
            raise FitError(f"{source.name}: no run can be used")
    grid = grid_of([*chosen[0], *chosen[1]])
    first = Frontier.of(chosen[0], f"A, {a.name}", grid, law, seed)
    second = Frontier.of(chosen[1], f"B, {b.name}", grid, law, seed + 1)
    low = max(first.data_range[0], second.data_range[0])
    high = min(first.data_range[1], second.data_range[1])
    if high - low < _LEAST_SHARED:
        raise FitError(
            f"the runs of {a.name} and {b.name} share no range of compute ({math.exp(low):.3g} to {math.exp(high):.3g} "
            "FLOPs): train both at some of the same budgets"
        )
    asked = np.log(computes) if computes else np.array([low, (low + high) / 2, high, high + math.log(TARGET_FACTOR)])
    spare = min(len(points) for points in chosen) - first.fit.at.law.num_parameters
    factor = student_factor(spare, level)
    own, drawn = log_multipliers(first, second, asked)
    multipliers = tuple(
        _multiplier(asked[k], own[k], _spread(own[k], drawn[:, k], level, factor), high) for k in range(len(asked))
    )
    inner = [frontier.range_of(_TAIL) for frontier in (first, second)]
    ends = max(r[0] for r in inner), min(r[1] for r in inner)
    looks = np.linspace(*(ends if ends[1] - ends[0] >= _LEAST_SHARED else (low, high)), _LOOKS)
    own, drawn = log_multipliers(first, second, looks)
    half = 0.5 + 0.5 * level  # the laws and the pairs share the chance of a false difference
    bands = _joint_bands(own, drawn, half, student_factor(spare, half))
    matched = match_runs(chosen[0], chosen[1], first.fit, half)
    curve = tuple(_multiplier(x, y, band, high) for x, y, band in zip(looks, own, bands, strict=True))
    return Comparison(
        a=a.name,
        b=b.name,
        num_points=(len(chosen[0]), len(chosen[1])),
        law=law,
        level=level,
        shared=(math.exp(low), math.exp(high)),
        multipliers=multipliers,
        curve=curve,
        crossing=_crossing(looks, own, drawn, level),
        matched=matched,
        verdict=_verdict(curve, matched),
    )


def _multiplier(log_compute: float, own: float, band: tuple[float, float], high: float) -> Multiplier:
    low, top = (math.exp(min(700.0, end)) if end < math.inf else math.inf for end in band)
    value = math.exp(own) if own < math.inf else math.inf
    return Multiplier(math.exp(log_compute), value, Interval(low, top), math.exp(log_compute - high))


def _spread(own: float, drawn: FloatArray, level: float, factor: float) -> tuple[float, float]:
    """Ends from the quantiles of the resamples about the fit, widened as Student's are over the normal ones."""
    low, high = (float(v) for v in np.quantile(drawn, [0.5 - 0.5 * level, 0.5 + 0.5 * level], method="nearest"))
    if not math.isfinite(own):
        return low, high
    return own - factor * (own - min(low, own)), own + factor * (max(high, own) - own)


def _joint_bands(own: FloatArray, drawn: FloatArray, level: float, factor: float) -> list[tuple[float, float]]:
    """Bands that hold at all looks together with this probability: the largest deviation of each resample counts."""
    reached = np.isfinite(own)
    away = drawn[:, reached] - own[reached]
    spread = np.array([_robust_spread(column) for column in away.T])
    largest = (np.abs(away) / spread).max(axis=1, initial=0.0)
    width = np.full(len(own), np.inf)
    width[reached] = factor * float(np.quantile(largest, level, method="higher")) * spread
    low = np.where(
        reached, own - np.where(reached, width, 0.0), np.quantile(drawn, 1.0 - level, axis=0, method="nearest")
    )
    return [(float(x), float(y)) for x, y in zip(low, np.where(reached, own + width, np.inf), strict=True)]


def _robust_spread(values: FloatArray) -> float:
    low, high = np.quantile(values, [0.1587, 0.8413], method="nearest")
    return max(float(high - low) / 2.0, 1e-12)


def _verdict(curve: Sequence[Multiplier], matched: Matched | None) -> Verdict:
    """What the joint bands of the laws or the mean of the pairs show, each at half of the chance to be wrong."""
    shown = [point.interval for point in curve]
    if matched is not None and matched.interval is not None:
        shown.append(matched.interval)
    better, worse = any(i.low > 1.0 for i in shown), any(i.high < 1.0 for i in shown)
    if better and worse:
        return "they cross"
    if better:
        return "B is better"
    return "A is better" if worse else "no difference is shown"


def _crossing(looks: FloatArray, own: FloatArray, drawn: FloatArray, level: float) -> Crossing | None:
    """Where the fits cross; the interval is that of the resamples that cross too."""
    at = _zero(looks, own)
    if at is None:
        return None
    found = [zero for row in drawn if (zero := _zero(looks, row)) is not None]
    ends = np.quantile(found, [0.5 - 0.5 * level, 0.5 + 0.5 * level]) if found else np.array([at, at])
    return Crossing(math.exp(at), Interval(*(float(np.exp(end)) for end in ends)), len(found) / len(drawn))


def _zero(x: FloatArray, y: FloatArray) -> float | None:
    signs = np.flatnonzero(np.diff(np.sign(y)) != 0)
    if not signs.size:
        return None
    k = int(signs[0])
    if not (math.isfinite(y[k]) and math.isfinite(y[k + 1])):
        return float(x[k])
    return float(x[k] - y[k] * (x[k + 1] - x[k]) / (y[k + 1] - y[k]))

"""The multiplier from pairs of runs of the same size and tokens, which needs a law only to turn loss into compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.points.points import Point
from flopsfit_ds.fit.quantiles import student_quantile
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.fit.solve.intervals import Interval

SAME = 0.02
"""In ln N and ln D: 2% of either is 1% of a per cent of loss."""
_LEAST_PAIRS = 3
"""Two degrees of freedom: with one Student's 90% interval is six standard errors to each side."""
_STEP = 0.05
"""Of ln N and of ln D, about the place: so near, a power law is a line to a few parts in ten thousand."""


@dataclass(frozen=True)
class Pair:
    """Two runs of the same size and tokens.

    Attributes:
        compute: FLOPs of A's run.
        num_params: Its size.
        num_tokens: Its tokens.
        log_loss_change: ln of B's loss over A's.
        multiplier: exp of that change over the slope of A's law along equal tokens per parameter.
    """

    compute: float
    num_params: float
    num_tokens: float
    log_loss_change: float
    multiplier: float


@dataclass(frozen=True)
class Matched:
    """What all pairs say.

    Attributes:
        pairs: By rising compute.
        multiplier: Of the mean of their logarithms.
        interval: Of that mean, by Student's t; None with fewer than three pairs.
        log_loss_change: Mean change of ln L from A to B.
    """

    pairs: tuple[Pair, ...]
    multiplier: float
    interval: Interval | None
    log_loss_change: float


def match_runs(a: Sequence[Point], b: Sequence[Point], fit_a: ScalingFit, level: float) -> Matched | None:
    """Pairs of runs whose N and D differ by less than 2%; None where there are none.

    Seeds and learning rates of one place enter by the mean of their ln L.
    """
    ours, theirs = _places(a), _places(b)
    pairs: list[Pair] = []
    for (log_n, log_d), (log_loss, log_c) in ours.items():
        near = [key for key in theirs if abs(key[0] - log_n) < SAME and abs(key[1] - log_d) < SAME]
        if not near:
            continue
        best = min(near, key=lambda key: abs(key[0] - log_n) + abs(key[1] - log_d))
        change = theirs[best][0] - log_loss
        slope = _slope(fit_a, log_n, log_d)
        pairs.append(Pair(math.exp(log_c), math.exp(log_n), math.exp(log_d), change, math.exp(change / slope)))
    if not pairs:
        return None
    logs = np.log([pair.multiplier for pair in pairs])
    interval = None
    if len(pairs) >= _LEAST_PAIRS:
        half = student_quantile(len(pairs) - 1, 0.5 + 0.5 * level) * float(logs.std(ddof=1)) / math.sqrt(len(pairs))
        interval = Interval(math.exp(logs.mean() - half), math.exp(logs.mean() + half))
    return Matched(
        tuple(sorted(pairs, key=lambda pair: (pair.compute, pair.num_params))),
        math.exp(float(logs.mean())),
        interval,
        float(np.mean([pair.log_loss_change for pair in pairs])),
    )


def _places(points: Sequence[Point]) -> dict[tuple[float, float], tuple[float, float]]:
    """(ln N, ln D) -> means of ln L and ln C of the runs there."""
    found: dict[tuple[float, float], list[Point]] = {}
    for point in points:
        found.setdefault((math.log(point.num_params), math.log(point.num_tokens)), []).append(point)
    return {
        key: (
            float(np.mean([math.log(p.loss) for p in members])),
            float(np.mean([math.log(p.compute_flops) for p in members])),
        )
        for key, members in found.items()
    }


def _slope(fit: ScalingFit, log_n: float, log_d: float) -> float:
    """Change of ln L with ln C at equal tokens per parameter, by A's law: negative."""
    ends = np.array([-_STEP, _STEP]) / 2
    values = fit.at.log_loss(log_n + ends, log_d + ends)
    costs = fit.at.rule.log_flops(log_n + ends, log_d + ends)
    return min(-1e-6, float((values[1] - values[0]) / (costs[1] - costs[0])))

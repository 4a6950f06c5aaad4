"""Registered forecasts against what was measured: where each fell, and what all of them together are worth.

All errors are of ln L, so that they read as shares of the loss. Scores are proper (Gneiting and Raftery 2007): no
forecaster gains by saying other than what he believes.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.decide.forecasts.registered import PROBABILITIES, Registered

SCORED_LEVEL = 0.9
"""The level whose interval score is shown; the nearest that a forecast has."""
_TAIL = 0.05
"""Coverage that comes about less often than so on either side, if intervals held, is called too low or too high."""


@dataclass(frozen=True)
class Hit:
    """One interval of a forecast and whether it held.

    Attributes:
        level: Its probability.
        low: ln of its lower end over the centre of the forecast.
        high: ln of its upper end over it.
        inside: Whether the measured loss lies in it.
        score: Width plus 2 / (1 - level) times what it missed by: smaller is better.
    """

    level: float
    low: float
    high: float
    inside: bool
    score: float

    @property
    def width(self) -> float:
        """Of ln L."""
        return self.high - self.low


@dataclass(frozen=True)
class Scored:
    """A forecast and what came.

    Attributes:
        name: Of the file.
        digest: Of the forecast.
        made_at: When it was registered.
        compute: FLOPs of the run.
        extrapolation: Over the largest run that it knew.
        predicted: Centre of the forecast.
        measured: Loss of the run.
        error: ln(measured / predicted).
        quantile: Share of the forecast that lies below the measured loss, between 0.005 and 0.995.
        hits: By rising level.
        crps: Continuous ranked probability score of ln L: the error of a forecast without width, less for one that
            knows its width.
    """

    name: str
    digest: str
    made_at: str
    compute: float
    extrapolation: float
    predicted: float
    measured: float
    error: float
    quantile: float
    hits: tuple[Hit, ...]
    crps: float


@dataclass(frozen=True)
class LevelSummary:
    """All intervals of one level.

    Attributes:
        level: Their probability.
        inside: How many held.
        count: How many there are.
        expected: Smallest and largest number that would be no surprise, 5% on either side.
        width: Mean width of ln L (sharpness).
        score: Mean interval score of ln L.
    """

    level: float
    inside: int
    count: int
    expected: tuple[int, int]
    width: float
    score: float

    @property
    def verdict(self) -> str:
        """Whether coverage is what it should be, on either side."""
        if self.inside < self.expected[0]:
            return "too narrow"
        return "too wide" if self.inside > self.expected[1] else "as expected"


@dataclass(frozen=True)
class Running:
    """What all forecasts up to one are worth.

    Attributes:
        count: Forecasts so far.
        crps: Mean.
        absolute_error: Mean size of the error of ln L.
        bias: Mean error of ln L.
        coverage: (level, share of intervals that held) of each level.
    """

    count: int
    crps: float
    absolute_error: float
    bias: float
    coverage: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ScoreTable:
    """Forecasts in the order in which they were made.

    Attributes:
        rows: Each forecast.
        running: After each of them, the same order.
        levels: All of them together, by level.
    """

    rows: tuple[Scored, ...]
    running: tuple[Running, ...]
    levels: tuple[LevelSummary, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """Plain types: rows with what ran up to each, and the levels."""
        rows = [
            {**asdict(row), "running": {**asdict(run), "coverage": {f"{k:g}": v for k, v in run.coverage}}}
            for row, run in zip(self.rows, self.running, strict=True)
        ]
        return {"forecasts": rows, "levels": [{**asdict(level), "verdict": level.verdict} for level in self.levels]}


def score_forecast(registered: Registered, measured: float, name: str) -> Scored:
    """Where a measured loss fell.

    Args:
        registered: The forecast, as `load_forecast` read it.
        measured: Loss of the run that was forecast, in the unit of the points.
        name: For people.

    Raises:
        FitError: A loss that is not positive and finite.
    """
    if not (math.isfinite(measured) and measured > 0):
        raise FitError(f"{name}: the measured loss must be positive and finite, got {measured}")
    forecast = registered.forecast
    seen, centre = math.log(measured), math.log(forecast.loss)
    hits = tuple(
        _hit(band.level, math.log(band.low) - centre, math.log(band.high) - centre, seen - centre)
        for band in sorted(forecast.intervals, key=lambda band: band.level)
    )
    knots = [math.log(value) for value in forecast.quantiles]
    pinballs = [(p if seen >= knot else p - 1.0) * (seen - knot) for p, knot in zip(PROBABILITIES, knots, strict=True)]
    return Scored(
        name=name,
        digest=registered.digest,
        made_at=forecast.made_at,
        compute=forecast.compute,
        extrapolation=forecast.extrapolation,
        predicted=forecast.loss,
        measured=measured,
        error=seen - centre,
        quantile=_quantile(knots, seen),
        hits=hits,
        crps=2.0 * sum(pinballs) / len(pinballs),
    )


def _hit(level: float, low: float, high: float, error: float) -> Hit:
    missed = max(0.0, low - error, error - high)
    return Hit(level, low, high, missed == 0.0, high - low + 2.0 / (1.0 - level) * missed)


def _quantile(knots: Sequence[float], seen: float) -> float:
    """Straight between the quantiles that are kept; half a step beyond the first and the last."""
    k = bisect_left(knots, seen)
    if k in (0, len(knots)):
        step = PROBABILITIES[1] - PROBABILITIES[0]
        return 0.5 * step if k == 0 else 1.0 - 0.5 * step
    share = (seen - knots[k - 1]) / max(knots[k] - knots[k - 1], 1e-300)
    return PROBABILITIES[k - 1] + share * (PROBABILITIES[k] - PROBABILITIES[k - 1])


def summarise(scored: Sequence[Scored]) -> ScoreTable:
    """The running table over many forecasts, and the coverage, sharpness and scores of all.

    Raises:
        FitError: No forecast, or one of them twice.
    """
    if not scored:
        raise FitError("there is no forecast to score; write one with flopsfit-ds register")
    digests = [row.digest for row in scored]
    twice = [row.name for row in scored if digests.count(row.digest) > 1]
    if twice:
        raise FitError(f"{', '.join(twice)} are one forecast: score it once")
    rows = tuple(sorted(scored, key=lambda row: (row.made_at, row.name)))
    return ScoreTable(rows, _running(rows), _levels(rows))


def _running(rows: Sequence[Scored]) -> tuple[Running, ...]:
    found: list[Running] = []
    crps = size = bias = 0.0
    held: dict[float, tuple[int, int]] = {}
    for count, row in enumerate(rows, start=1):
        crps, size, bias = crps + row.crps, size + abs(row.error), bias + row.error
        for hit in row.hits:
            inside, total = held.get(hit.level, (0, 0))
            held[hit.level] = (inside + hit.inside, total + 1)
        coverage = tuple((level, inside / total) for level, (inside, total) in sorted(held.items()))
        found.append(Running(count, crps / count, size / count, bias / count, coverage))
    return tuple(found)


def _levels(rows: Sequence[Scored]) -> tuple[LevelSummary, ...]:
    found: list[LevelSummary] = []
    for level in sorted({hit.level for row in rows for hit in row.hits}):
        hits = [hit for row in rows for hit in row.hits if hit.level == level]
        count = len(hits)
        found.append(
            LevelSummary(
                level,
                sum(hit.inside for hit in hits),
                count,
                expected_hits(count, level),
                sum(hit.width for hit in hits) / count,
                sum(hit.score for hit in hits) / count,
            )
        )
    return tuple(found)


def expected_hits(count: int, level: float) -> tuple[int, int]:
    """Numbers of `count` intervals that hold with no more than 5% beyond either, if each holds with `level`."""
    whole = math.lgamma(count + 1)
    chances = [
        math.exp(
            whole
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * math.log(level)
            + (count - k) * math.log1p(-level)
        )
        for k in range(count + 1)
    ]
    low, below = 0, chances[0]
    while below <= _TAIL and low < count:
        low += 1
        below += chances[low]
    high, above = count, chances[count]
    while above <= _TAIL and high > 0:
        high -= 1
        above += chances[high]
    return low, high

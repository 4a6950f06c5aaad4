"""Do prediction intervals hold? Fit the lower budgets of tables, predict the runs above, and count.

    python scripts/study_forecasts.py TABLE.csv [TABLE.csv ...]
    python scripts/study_forecasts.py TABLE.csv ... --constant forecast.history._TEMPER --values 0.1 0.2 0.4

A table has the columns num_params, num_tokens, flops and loss, a row for each finished run. It is cut below each budget
from the fourth on (where runs lie in no budgets, at eighths of them), the law is fitted to what lies below, and every
run from 2 to 300 times as large as the largest below is predicted. Printed for each table and for each ratio: how many
predictions lie in their 90% interval, the median width, the median error of the centre, and the interval score (width
plus 20 times what is missed, in percent of the loss; Gneiting and Raftery 2007). No table comes with the project: those
that its constants were set on are named in docs/forecasts.md. With a constant of `flopsfit_ds.fit` and some values, the
last line of each table of results is printed for every value.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit import Point, fit_scaling_law, load_points

LEVEL = 0.9
GAP = 0.1
"""E-folds of compute between two budgets at least."""
LEAST_POINTS = 10
CHUNKS = 8
RATIOS = (2.0, 4.0, 12.0, 40.0, 300.0)


@dataclass(frozen=True)
class Outcome:
    """One prediction; all losses are natural logarithms.

    Attributes:
        table: Name of the table.
        ratio: Compute over the largest that was seen.
        observed: Loss of the run.
        centre: Predicted.
        low: Lower end of the interval.
        high: Upper end.
    """

    table: str
    ratio: float
    observed: float
    centre: float
    low: float
    high: float


def groups_of(points: Sequence[Point]) -> list[list[int]]:
    """Indices by rising compute: budgets, or equal parts where there are none."""
    log_compute = np.log([point.compute_flops for point in points])
    order = np.argsort(log_compute)
    ends = np.flatnonzero(np.diff(log_compute[order]) > GAP) + 1
    found = [part.tolist() for part in np.split(order, ends)]
    spans = [float(np.ptp(log_compute[part])) for part in found]
    if np.mean([len(part) >= 3 for part in found]) < 0.5 or max(spans) > 0.5:
        found = [part.tolist() for part in np.array_split(order, min(CHUNKS, max(1, len(points) // 4)))]
    return found


def cuts_of(points: Sequence[Point]) -> Iterator[tuple[list[Point], list[Point]]]:
    """Runs below a cut, and those above it that are to be predicted."""
    groups = groups_of(points)
    for number in range(3, len(groups)):
        below = [points[index] for group in groups[:number] for index in group]
        edge = max(point.compute_flops for point in below)
        above = [point for point in points if RATIOS[0] <= point.compute_flops / edge <= RATIOS[-1]]
        if len(below) >= LEAST_POINTS and above:
            yield below, above


def study(path: Path) -> tuple[list[Outcome], int, int]:
    """All predictions of a table, the number of cuts, and how many of them could not be fitted."""
    outcomes, cuts, refused = [], 0, 0
    for below, above in cuts_of(load_points(path).points):
        cuts += 1
        try:
            fit = fit_scaling_law(below, bootstrap_samples=200, diagnostics=False)
        except FitError:
            refused += 1
            continue
        for point in above:
            guess = fit.predict(num_params=point.num_params, num_tokens=point.num_tokens, level=LEVEL)
            low, high = max(guess.interval.low, 1e-9), min(guess.interval.high, 1e9)
            values = (math.log(value) for value in (point.loss, guess.loss, low, high))
            outcomes.append(Outcome(path.stem, guess.extrapolation, *values))
    return outcomes, cuts, refused


def line(name: str, outcomes: Sequence[Outcome]) -> str:
    """One row of the table."""
    observed, centre, low, high = (
        np.array([getattr(outcome, field) for outcome in outcomes]) for field in ("observed", "centre", "low", "high")
    )
    covered = float(((low <= observed) & (observed <= high)).mean())
    width = np.minimum(high - low, 5.0)
    missed = np.maximum(low - observed, 0.0) + np.maximum(observed - high, 0.0)
    score = 100 * float((width + 2 / (1 - LEVEL) * missed).mean())
    error, middle = 100 * float(np.median(np.abs(observed - centre))), 100 * float(np.median(width))
    return f"{name[:36]:36} {len(outcomes):6} {covered:8.3f} {middle:8.2f} {error:8.2f} {score:8.2f}"


def vary_constant(name: str, values: Sequence[float], tables: Sequence[Path]) -> None:
    """Print what each value of a constant does to all predictions together."""
    home, _, attribute = name.rpartition(".")
    module = importlib.import_module(f"flopsfit_ds.fit.{home}")
    kind = type(getattr(module, attribute))
    for value in values:
        setattr(module, attribute, kind(value))
        studied = [study(path) for path in tables]
        refused = sum(count for _, _, count in studied)
        row = line(f"{name} = {value:g}"[-36:], [outcome for outcomes, _, _ in studied for outcome in outcomes])
        print(f"{row}   ({refused} cuts could not be fitted)", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--constant", help="its module and name below flopsfit_ds.fit")
    parser.add_argument("--values", type=float, nargs="+", help="values to give it")
    given = parser.parse_args()
    everything: list[Outcome] = []
    print(f"{'table':36} {'runs':>6} {'covered':>8} {'width %':>8} {'error %':>8} {'score':>8}")
    if given.constant:
        vary_constant(given.constant, given.values or (), given.tables)
        return
    for path in given.tables:
        outcomes, cuts, refused = study(path)
        everything += outcomes
        said = f"   ({refused} of {cuts} cuts could not be fitted)" if refused else ""
        row = line(path.stem, outcomes) if outcomes else f"{path.stem}: no cut could be fitted"
        print(row + said, flush=True)
    if everything:
        print(line("all", everything))
    for low, high in itertools.pairwise(RATIOS):
        here = [outcome for outcome in everything if low <= outcome.ratio < high]
        if here:
            print(line(f"{low:g} to {high:g} times", here))


if __name__ == "__main__":
    main()

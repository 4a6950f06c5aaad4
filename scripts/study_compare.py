"""Does `compare` tell a better recipe from a lucky one? Planted multipliers, and two draws of one law.

    python scripts/study_compare.py --laws 60

Recipe B is law A with every run worth a multiple of its compute, so that the multiplier is known and the same at every
compute. Both are drawn with noise on isoFLOP grids, once at the same sizes (so that runs pair), once not. Printed: how
many 90% intervals hold the truth at the ends and the middle of the runs, how wide they are, how often a difference is
shown, and of these how often the wrong one. With a multiplier of 1 at most one in ten may be shown.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flopsfit_ds.decide.comparing.compare import compare_runs
from flopsfit_ds.decide.sources import Source
from flopsfit_ds.fit.planted import GridDesign, PlantedLaw, planted_points, random_law
from flopsfit_ds.fit.points.points import Point


def worth(
    planted: PlantedLaw, points: Sequence[Point], times: float, noise: float, rng: np.random.Generator
) -> list[Point]:
    """Runs of the same sizes and tokens by a recipe whose every run is worth so many times its compute."""
    root = math.sqrt(times)
    n = np.array([p.num_params for p in points])
    d = np.array([p.num_tokens for p in points])
    losses = planted.loss(n * root, d * root, None) * np.exp(noise * rng.standard_normal(len(n)))
    return [replace(p, loss=float(value)) for p, value in zip(points, losses, strict=True)]


def source(name: str, points: Sequence[Point]) -> Source:
    """A table of these runs."""
    return Source(name, ("table",), tuple(points), (), {}, None, (None,) * len(points))


def main() -> None:
    """Draw, compare, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.003)
    given = parser.parse_args()
    print("times  paired  covered: low, middle, high  width of the middle  shown  wrong")
    for times in (1.0, 1.1, 1.5):
        for paired in (True, False):
            held, widths, shown, wrong = np.zeros(3), [], 0, 0
            for number in range(given.laws):
                rng = np.random.default_rng(1000 * number + 7)
                planted = random_law("chinchilla", rng)
                design = GridDesign(sizes_per_budget=7, noise=given.noise)
                first = planted_points(planted, design, rng)
                grid = first if paired else planted_points(planted, design, rng)
                second = worth(planted, grid, times, given.noise, rng)
                found = compare_runs(source("a", first), source("b", second), seed=number)
                held += [m.interval.contains(times) for m in found.multipliers[:3]]
                middle = found.multipliers[1].interval
                widths.append(math.log(middle.high / middle.low))
                shown += found.verdict != "no difference is shown"
                wrong += found.verdict in ("A is better", "they cross")
            rates = ", ".join(f"{value / given.laws:.0%}" for value in held)
            print(
                f"{times:5.2f}  {paired!s:>6}  {rates:>26}  {np.median(widths):19.1%}  {shown / given.laws:5.0%}  "
                f"{wrong / given.laws:5.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()

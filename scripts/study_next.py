"""Does `next` choose well? Tables of finished runs as oracles: a tenth of their compute, by several ways of choosing.

    python scripts/study_next.py TABLE.csv [TABLE.csv ...] [--judge POOL.parquet JUDGE.parquet]

A table (num_params, num_tokens, flops, loss) is the pool; its labels are shown only of runs that were chosen. Ways:

- next: a few cheap runs of the lowest budgets to begin with, then batches of `next`, each a third of what is left;
- random: runs in random order while they fit (the median of several orders);
- cheapest: by rising cost;
- isoFLOP: seven even sizes at each of the three highest neighbouring budgets that fit.

Judged by |ln N*| and |ln L*| against the fit to the whole table, at its largest compute. With `--judge` by R2 on
runs that are never in the pool, as the published comparison does (arXiv:2604.22753, table 2: on its `farseer` set, at a
tenth of the budget, .93 by its method, .92 by V-optimal and .87 by D-optimal designs, .79 at random).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from study_forecasts import groups_of

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.decide.choosing.belief import Place
from flopsfit_ds.decide.choosing.choose import Candidates, choose_next
from flopsfit_ds.fit import Point, ScalingFit, fit_scaling_law, load_points

SHARE_TO_BEGIN = 0.12
LEAST_TO_BEGIN = 9
ROUNDS = 4
Choice = list[int]


def cost(points: Sequence[Point], chosen: Sequence[int]) -> float:
    """FLOPs of the chosen runs."""
    return sum(points[k].compute_flops for k in chosen)


def by_order(points: Sequence[Point], order: Sequence[int], budget: float) -> Choice:
    """Runs in this order while they fit."""
    found: Choice = []
    spent = 0.0
    for k in order:
        if spent + points[k].compute_flops <= budget:
            found.append(int(k))
            spent += points[k].compute_flops
    return found


def even(group: Sequence[int], points: Sequence[Point], count: int) -> Choice:
    """Even sizes of a budget."""
    ordered = sorted(group, key=lambda k: points[k].num_params)
    return [ordered[round(x)] for x in np.linspace(0, len(ordered) - 1, min(count, len(ordered)))]


def isoflop(points: Sequence[Point], budget: float) -> Choice:
    """The three highest neighbouring budgets, seven sizes each, that fit; fewer sizes where none do."""
    groups = groups_of(points)
    for count in (7, 5, 4):
        for top in range(len(groups) - 1, 1, -1):
            chosen = [k for group in groups[top - 2 : top + 1] for k in even(group, points, count)]
            if cost(points, chosen) <= budget:
                return chosen
    return by_order(points, np.argsort([p.compute_flops for p in points]).tolist(), budget)


def beginning(points: Sequence[Point], budget: float) -> Choice:
    """Even sizes of some of the lowest budgets, until an eighth of the budget is spent, nine runs at least."""
    found: Choice = []
    affordable = [group for group in groups_of(points) if cost(points, even(group, points, 5)) < 0.1 * budget]
    for group in affordable[:: max(1, len(affordable) // 4)] or groups_of(points):
        for k in even(group, points, 5):
            if len(found) >= LEAST_TO_BEGIN and cost(points, [*found, k]) > SHARE_TO_BEGIN * budget:
                return found
            if cost(points, [*found, k]) <= 0.5 * budget:
                found.append(k)
    return found


def by_next(points: Sequence[Point], budget: float, target: float) -> Choice:
    """Batches of `next` after a cheap beginning."""
    chosen = beginning(points, budget)
    for number in range(ROUNDS):
        left = budget - cost(points, chosen)
        pool = [k for k in range(len(points)) if k not in chosen and points[k].compute_flops <= left]
        if not pool:
            break
        place = Place.of([points[k] for k in pool])
        candidates = Candidates(place, np.exp(place.log_c), np.array(["law"] * len(pool)))
        part = left if number == ROUNDS - 1 else max(left / 3, min(points[k].compute_flops for k in pool))
        try:
            batch = choose_next([points[k] for k in chosen], part, 1.0, target_compute=target, candidates=candidates)
        except FitError as error:
            if "no run fits" in str(error):
                continue
            chosen = [*chosen, *by_order(points, sorted(pool, key=lambda k: points[k].compute_flops), part)]
            continue
        sizes = {(round(math.log(run.num_params), 9), round(math.log(run.num_tokens), 9)) for run in batch.runs}
        keys = {k: (round(math.log(points[k].num_params), 9), round(math.log(points[k].num_tokens), 9)) for k in pool}
        new = [k for k in pool if keys[k] in sizes]
        chosen = [*chosen, *by_order(points, new, left)]
    return chosen


def fit_of(points: Sequence[Point], chosen: Sequence[int]) -> ScalingFit:
    """The fit to the chosen runs."""
    return fit_scaling_law([points[k] for k in chosen], bootstrap_samples=0, diagnostics=False)


def judged(points: Sequence[Point], chosen: Choice, target: float, whole: ScalingFit) -> tuple[float, float]:
    """Errors of ln N* and of ln L* at the target; infinite where the runs carry no law."""
    try:
        fit = fit_of(points, chosen)
        best = fit.optimum(target)
        truth = whole.optimum(target)
    except FitError:
        return math.inf, math.inf
    loss = fit.predict(target).loss
    return abs(math.log(best.num_params / truth.num_params)), abs(math.log(loss / whole.predict(target).loss))


def r_squared(points: Sequence[Point], chosen: Choice, judge: Sequence[Point]) -> float:
    """R2 on runs outside the pool, not below -1."""
    try:
        model = fit_of(points, chosen).prediction
    except FitError:
        return -1.0
    seen = np.array([p.loss for p in judge])
    said = np.array([model.predict(num_params=p.num_params, num_tokens=p.num_tokens).loss for p in judge])
    return max(-1.0, 1.0 - float(((said - seen) ** 2).sum() / ((seen - seen.mean()) ** 2).sum()))


def main() -> None:
    """Choose, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path)
    parser.add_argument("--judge", nargs=2, type=Path, metavar=("POOL", "JUDGE"))
    parser.add_argument("--share", type=float, default=0.1, help="of the pool's FLOPs")
    parser.add_argument("--orders", type=int, default=5, help="random orders")
    given = parser.parse_args()
    for path in given.tables:
        points = list(load_points(path).points)
        target = max(p.compute_flops for p in points)
        budget = given.share * cost(points, range(len(points)))
        whole = fit_scaling_law(points, bootstrap_samples=0, diagnostics=False)
        choices: dict[str, Callable[[], Choice]] = {
            "next": lambda p=points, b=budget, t=target: by_next(p, b, t),
            "isoFLOP": lambda p=points, b=budget: isoflop(p, b),
            "cheapest": lambda p=points, b=budget: by_order(p, np.argsort([q.compute_flops for q in p]).tolist(), b),
        }
        told = []
        for name, choose in choices.items():
            chosen = choose()
            n, loss = judged(points, chosen, target, whole)
            told.append(f"{name} {n:.3f} {loss:.2%} ({len(chosen)} runs, {cost(points, chosen) / budget:.0%})")
        errors = []
        for order in range(given.orders):
            shuffled = np.random.default_rng(order).permutation(len(points)).tolist()
            errors.append(judged(points, by_order(points, shuffled, budget), target, whole))
        n, loss = np.median(np.array(errors), axis=0)
        print(f"{path.stem[:36]:36s} " + "; ".join([*told, f"random {n:.3f} {loss:.2%}"]), flush=True)
    if given.judge:
        points, judge = (list(load_points(path).points) for path in given.judge)
        target = max(p.compute_flops for p in judge)
        budget = given.share * cost(points, range(len(points)))
        shuffled = [np.random.default_rng(k).permutation(len(points)).tolist() for k in range(given.orders)]
        random = np.median([r_squared(points, by_order(points, order, budget), judge) for order in shuffled])
        ways = {
            "next": by_next(points, budget, target),
            "isoFLOP": isoflop(points, budget),
            "whole pool": list(range(len(points))),
        }
        told = [f"{name} {r_squared(points, chosen, judge):.3f}" for name, chosen in ways.items()]
        print(f"R2 on {len(judge)} runs outside: " + ", ".join([*told, f"random {random:.3f}"]))


if __name__ == "__main__":
    main()

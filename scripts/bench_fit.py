"""Speed and accuracy of the fitter beside the literature's method, measured in the same run on one core.

    python scripts/bench_fit.py                      # 240 planted points
    python scripts/bench_fit.py --data results.csv   # anyone's points
    python scripts/bench_fit.py --rows 240 10000 --baseline ../before   # whole fits, beside another checkout's

The literature's method: scipy's L-BFGS-B with numerical gradients on the summed Huber loss of the log loss, from the
4,500
starts of Hoffmann et al. 2022 (appendix D.2), and one such minimisation from the optimum for each of 4,000 resamples
(Besiroglu et al. 2024). Both are timed on a sample of starts and resamples, drawn at random, and scaled up: this is
said in the table.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from flopsfit_ds.fit import load_points
from flopsfit_ds.fit.laws.registry import get_law
from flopsfit_ds.fit.losses import make_loss
from flopsfit_ds.fit.planted import GridDesign, planted_points, random_law
from flopsfit_ds.fit.points.points import Point, PointArrays, in_order
from flopsfit_ds.fit.points.selection import select_points
from flopsfit_ds.fit.scaling import make_problem
from flopsfit_ds.fit.solve.bootstrap import bootstrap_fits
from flopsfit_ds.fit.solve.certificate import CertifiedFit, certified_fit
from flopsfit_ds.fit.solve.solver import Problem

DELTA = 1e-3
GRID = {
    "a": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "b": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "e": (-1.0, -0.5, 0.0, 0.5, 1.0),
    "alpha": (0.0, 0.5, 1.0, 1.5, 2.0),
    "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
}
REPEATS = 7


def bench_points(path: Path | None, drop_highest: int) -> list[Point]:
    """The points of a table, or 240 planted ones with heavy-tailed noise of 0.5%."""
    if path is not None:
        points = sorted(load_points(path).points, key=lambda p: p.loss)
        return points[: len(points) - drop_highest]
    rng = np.random.default_rng(0)
    budgets = tuple(float(c) for c in np.geomspace(6e18, 3e21, 12))
    return planted_points(random_law("chinchilla", rng), GridDesign(budgets, 20, 30.0, 0.005), rng)


def best_time(action: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs, after a warm-up."""
    action()
    times: list[float] = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


def literature_objective(arrays: PointArrays) -> Callable[[np.ndarray, np.ndarray], float]:
    """Summed Huber loss of log loss as published code computes it; the second argument selects points."""
    log_n, log_d, log_loss = np.log(arrays.num_params), np.log(arrays.num_tokens), np.log(arrays.loss)

    def objective(theta: np.ndarray, rows: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        n, d, y = log_n[rows], log_d[rows], log_loss[rows]
        residual = logsumexp([a - alpha * n, b - beta * d, np.full_like(n, e)], axis=0) - y
        size = np.abs(residual)
        return float(np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA)).sum())

    return objective


def to_literature(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """(a, b, e, alpha, beta) of a fit."""
    natural = {k: float(v[0]) for k, v in problem.law.natural(theta[None], problem.inputs).items()}
    logs = [np.log(natural[name]) for name in ("A", "B", "loss_floor")]
    return np.array([*logs, natural["alpha"], natural["beta"]])


def time_literature(
    arrays: PointArrays, optimum: np.ndarray, starts: int, resamples: int
) -> tuple[float, float, float, float]:
    """Seconds a start, share of starts within 1e-6 of the best, lowest objective, seconds a resample."""
    objective = literature_objective(arrays)
    everyone = np.arange(len(arrays.loss))
    rng = np.random.default_rng(0)
    grid = np.array(list(itertools.product(*GRID.values())))
    chosen = grid[rng.choice(len(grid), size=starts, replace=False)]
    began = time.perf_counter()
    ends = [minimize(objective, start, args=(everyone,), method="L-BFGS-B").fun for start in chosen]
    per_start = (time.perf_counter() - began) / starts
    began = time.perf_counter()
    for _ in range(resamples):
        rows = rng.integers(0, len(everyone), size=len(everyone))
        minimize(objective, optimum, args=(rows,), method="L-BFGS-B")
    per_resample = (time.perf_counter() - began) / resamples
    known = min(min(ends), objective(optimum, everyone))
    return per_start, float(np.mean(np.array(ends) <= known * (1 + 1e-6))), float(min(ends)), per_resample


def best_known(arrays: PointArrays, optimum: np.ndarray) -> float:
    """Lowest objective of Nelder-Mead polishing from the optimum and near it: another method's word."""
    objective = literature_objective(arrays)
    everyone = np.arange(len(arrays.loss))
    rng = np.random.default_rng(1)
    starts = [optimum, *(optimum * (1 + 0.02 * rng.standard_normal(5)) for _ in range(4))]
    options = {"xatol": 1e-12, "fatol": 1e-16, "maxiter": 20_000, "maxfev": 20_000}
    return min(
        float(minimize(objective, start, args=(everyone,), method="Nelder-Mead", options=options).fun)
        for start in starts
    )


WHOLE_FIT = """
import json, sys, time
import numpy as np
from flopsfit_ds.fit import fit_scaling_law
from flopsfit_ds.fit.planted import GridDesign, planted_points, random_law
rows = int(sys.argv[1])
rng = np.random.default_rng(0)
budgets = tuple(float(c) for c in np.geomspace(6e18, 3e21, 12 if rows < 1000 else 100))
design = GridDesign(budgets, rows // len(budgets), 30.0, 0.005)
points = planted_points(random_law("chinchilla", rng), design, rng)
began = time.process_time()
fit = fit_scaling_law(points)
print(json.dumps([time.process_time() - began, fit.law.a, fit.standard_errors["a"], fit.predict(1e23).loss]))
"""
"""Run on its own, so that any checkout can be asked; the time holds the imports that a first fit needs."""


def whole_fits(rows: list[int], baseline: Path | None) -> None:
    """Print CPU seconds of whole fits with their diagnostics, of this checkout and of another one by turns."""
    here = Path(__file__).resolve().parents[1]
    places = [("this one", here)] + ([] if baseline is None else [(str(baseline), baseline.resolve())])
    print(f"{'rows':>7s}  {'CPU s':>8s}  {'a':>8s}  {'its error':>9s}  {'loss at 1e23':>12s}  checkout")
    for count in rows:
        for name, place in places:
            environment = {**os.environ, "PYTHONPATH": str(place)}
            command = [sys.executable, "-c", WHOLE_FIT, str(count)]
            told = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=True)
            seconds, exponent, error, loss = json.loads(told.stdout)
            print(f"{count:>7d}  {seconds:>8.2f}  {exponent:>8.5f}  {error:>9.5f}  {loss:>12.5f}  {name}")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a table of results; 240 planted points without it")
    parser.add_argument("--drop-highest-losses", type=int, default=0)
    parser.add_argument("--starts", type=int, default=60, help="of the literature's 4,500 starts, how many to time")
    parser.add_argument("--resamples", type=int, default=40, help="of its 4,000 resamples, how many to time")
    parser.add_argument("--rows", type=int, nargs="+", help="time whole fits of so many planted rows, and nothing else")
    parser.add_argument("--baseline", type=Path, help="another checkout to time whole fits of, in the same run")
    given = parser.parse_args()
    if given.rows or given.baseline is not None:
        whole_fits(given.rows or [240, 10_000], given.baseline)
        return
    points = in_order(select_points(bench_points(given.data, given.drop_highest_losses)).points)
    arrays = PointArrays.of(points)
    problem = make_problem(get_law("chinchilla"), make_loss("huber_log", DELTA), arrays)
    fit: CertifiedFit = certified_fit(problem)
    clusters = np.arange(len(points))

    def bootstrap(samples: int) -> Callable[[], object]:
        return lambda: bootstrap_fits(problem, fit.theta, fit.starts, clusters, "points", samples, 0)

    fit_seconds = best_time(lambda: certified_fit(problem))
    thousand, four_thousand = best_time(bootstrap(1000)), best_time(bootstrap(4000))
    optimum = to_literature(problem, fit.theta)
    per_start, share, lowest, per_resample = time_literature(arrays, optimum, given.starts, given.resamples)
    other = min(lowest, best_known(arrays, optimum))
    certificate = fit.certificate
    print(f"{len(points)} points, one core; the fastest of {REPEATS} runs")
    print(
        f"certified fit, {certificate.starts} starts         {1e3 * fit_seconds:9.1f} ms   "
        f"({certificate.best_share:.0%} of starts reach the best)"
    )
    print(f"1,000 bootstrap fits              {thousand:9.3f} s")
    print(f"4,000 bootstrap fits              {four_thousand:9.3f} s")
    print(f"objective                         {fit.objective:.12g}   best known otherwise {other:.12g}")
    print(f"  above the best known, relative  {max(0.0, fit.objective / other - 1.0):9.1e}")
    print(
        f"literature, 4,500 starts          {4500 * per_start:9.1f} s    "
        f"(timed on {given.starts}, {share:.0%} of them reach the best)"
    )
    print(f"literature, 4,000 bootstrap fits  {4000 * per_resample:9.1f} s    (timed on {given.resamples})")
    print(f"ratio, fit                        {4500 * per_start / fit_seconds:9.0f} x")
    print(f"ratio, bootstrap                  {4000 * per_resample / four_thousand:9.0f} x")


if __name__ == "__main__":
    main()

"""Coverage of the fit's intervals over planted laws: parameters, and predictions at 10 and 100 times the largest
budget.

    python scripts/calibrate_fit.py parameters --laws 200
    python scripts/calibrate_fit.py predictions --laws 35

The first fits random Chinchilla laws on isoFLOP grids with 0.2% noise and counts how often the 95% interval of each
parameter holds the true one. The second plants laws of every form, fits each with the default form and with its own,
and counts how often the 90% prediction interval holds the loss of a run at the optimum that the fit recommends.
"""

import argparse
import math
import time
from collections.abc import Iterable

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit import ScalingFit, fit_scaling_law
from flopsfit_ds.fit.laws.registry import LAWS, get_law
from flopsfit_ds.fit.losses import make_loss
from flopsfit_ds.fit.planted import GridDesign, PlantedLaw, planted_points, random_law
from flopsfit_ds.fit.points.points import Point, PointArrays
from flopsfit_ds.fit.scaling import make_problem
from flopsfit_ds.fit.solve.solver import minimise

PARAMETERS = ("loss_floor", "A", "B", "alpha", "beta", "a", "b")
FACTORS = (10.0, 100.0)


def best_known(points: list[Point], planted: PlantedLaw) -> float:
    """The lowest objective found from the true parameters and from 256 random starts."""
    arrays = PointArrays.of(points)
    problem = make_problem(get_law("chinchilla"), make_loss("huber_log", 1e-3), arrays)
    natural = planted.natural()
    truth = np.array(
        [
            natural["loss_floor"],
            math.log(natural["A"]) - natural["alpha"] * problem.inputs.centre_n,
            math.log(natural["B"]) - natural["beta"] * problem.inputs.centre_d,
            natural["alpha"],
            natural["beta"],
        ]
    )
    rng = np.random.default_rng(0)
    spread = np.array([0.2 * truth[0], 0.7, 0.7, 0.15, 0.15])
    starts = truth + np.concatenate([np.zeros((1, 5)), rng.standard_normal((256, 5))]) * spread
    return float(minimise(problem, starts).objective.min())


def cover_parameters(laws: int, design: GridDesign, samples: int, level: float, seed: int) -> dict[str, float]:
    """Share of laws whose interval of each parameter holds the truth, and whose best objective was found."""
    rng = np.random.default_rng(seed)
    hits = {name: 0 for name in PARAMETERS}
    best = 0
    for number in range(laws):
        planted = random_law("chinchilla", rng)
        points = planted_points(planted, design, rng)
        fit = fit_scaling_law(
            points, bootstrap_samples=samples, level=level, seed=number, other_forms=False, diagnostics=False
        )
        truth = planted.natural()
        for name in PARAMETERS:
            hits[name] += fit.intervals[name].contains(truth[name])
        best += fit.objective <= best_known(points, planted) * (1 + 1e-8)
    shares = {name: count / laws for name, count in hits.items()}
    return {**shares, "pooled": sum(shares.values()) / len(shares), "best objective found": best / laws}


def plain_interval(fit: ScalingFit, num_params: float, num_tokens: float, level: float) -> tuple[float, float]:
    """Percentiles of the loss over the bootstrap of the fitted form: what public fitters print."""
    assert fit.draws is not None
    at = fit.at.inputs.at(np.log([num_params]), np.log([num_tokens]))
    values = fit.at.law.log_loss(fit.draws.theta, at)[:, 0]
    low, high = np.quantile(values, [0.5 - 0.5 * level, 0.5 + 0.5 * level])
    return float(np.exp(low)), float(np.exp(high))


def judge(
    fit: ScalingFit, planted: PlantedLaw, design: GridDesign, level: float, rng: np.random.Generator
) -> list[list[float]]:
    """For each factor of compute: whether each interval holds the truth; relative width and error."""
    rows: list[list[float]] = []
    for factor in FACTORS:
        guess = fit.predict(factor * max(design.budgets), level=level)
        true = float(planted.loss(np.array([guess.num_params]), np.array([guess.num_tokens]))[0])
        run = true * math.exp(design.noise * rng.standard_normal())
        low, high = plain_interval(fit, guess.num_params, guess.num_tokens, level)
        width = (guess.interval.high - guess.interval.low) / true
        inside = [guess.interval.contains(run), guess.confidence_interval.contains(true), low <= run <= high]
        rows.append([*(float(i) for i in inside), width, abs(guess.loss / true - 1.0)])
    return rows


def cover_predictions(
    forms: Iterable[str], laws: int, design: GridDesign, samples: int, level: float, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """(planted form, fitted form) -> rows (laws, factors, measures), from `judge`."""
    table: dict[tuple[str, str], np.ndarray] = {}
    for form in forms:
        for fitted in dict.fromkeys(["chinchilla", form]):
            rng = np.random.default_rng([seed, *map(ord, form)])
            rows: list[list[list[float]]] = []
            for number in range(laws):
                planted = random_law(form, rng)
                points = planted_points(planted, design, rng)
                try:
                    fit = fit_scaling_law(points, law=fitted, bootstrap_samples=samples, seed=number, diagnostics=False)
                    rows.append(judge(fit, planted, design, level, rng))
                except FitError as error:
                    print(f"{form} fitted as {fitted}, law {number}: {error}")
            table[form, fitted] = np.array(rows)
    return table


def print_predictions(table: dict[tuple[str, str], np.ndarray], level: float) -> None:
    """The coverage table by form, the plain bootstrap beside it, and the pooled shares."""
    print(f"{level:.0%} intervals; share that hold the truth at 10x and 100x the largest budget")
    heads = "prediction    confidence    plain bootstrap   median width    median error"
    print(f"{'planted':18s}{'fitted':18s}laws  {heads}")
    for (form, fitted), rows in table.items():
        shares, medians = rows[:, :, :3].mean(axis=0), np.median(rows[:, :, 3:], axis=0)
        cells = "  ".join(f"{shares[0, k]:6.3f}{shares[1, k]:6.3f}" for k in range(3))
        sizes = "  ".join(f"{medians[0, k]:7.3%}{medians[1, k]:8.3%}" for k in range(2))
        print(f"{form:18s}{fitted:18s}{len(rows):4d}{cells}    {sizes}")
    everything = np.concatenate([rows.reshape(-1, rows.shape[2]) for rows in table.values()])
    default = np.concatenate([r.reshape(-1, r.shape[2]) for (_, fitted), r in table.items() if fitted == "chinchilla"])
    for name, rows in (("all", everything), ("default form fitted", default)):
        mean = rows.mean(axis=0)
        print(
            f"pooled, {name}: {len(rows)} predictions, prediction {mean[0]:.3f}, confidence {mean[1]:.3f}, plain "
            f"{mean[2]:.3f}"
        )


def main() -> None:
    """Run one of the two studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["parameters", "predictions"])
    parser.add_argument("--laws", type=int, default=200, help="laws (for predictions: of each form)")
    parser.add_argument("--budgets", type=float, nargs="+", default=list(GridDesign().budgets))
    parser.add_argument("--sizes", type=int, default=GridDesign().sizes_per_budget, help="sizes on each budget")
    parser.add_argument("--noise", type=float, default=GridDesign().noise)
    parser.add_argument("--samples", type=int, default=400, help="bootstrap resamples of each fit")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    design = GridDesign(tuple(given.budgets), given.sizes, noise=given.noise)
    began = time.perf_counter()
    print(
        f"{len(design.budgets)} budgets x {design.sizes_per_budget} sizes, noise {design.noise:.2%}, seed {given.seed}"
    )
    if given.study == "parameters":
        for name, share in cover_parameters(given.laws, design, given.samples, 0.95, given.seed).items():
            print(f"{name:22s}{share:.3f}")
    else:
        print_predictions(cover_predictions(LAWS, given.laws, design, given.samples, 0.9, given.seed), 0.9)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

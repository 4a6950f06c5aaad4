"""What the fit's numbers were set by: coverage of its intervals, and what one constant changes.

    python scripts/calibrate_fit.py parameters --laws 200
    python scripts/calibrate_fit.py predictions --laws 35
    python scripts/calibrate_fit.py rays --laws 6
    python scripts/calibrate_fit.py constant --laws 3 --name solve.solver._NEWTON_DAMPING --values 0.03 0.3 3
    python scripts/calibrate_fit.py warnings --laws 40
    python scripts/calibrate_fit.py figures --laws 40

The first fits random Chinchilla laws on isoFLOP grids with 0.2% noise and counts how often the 95% interval of each
parameter holds the true one. The second plants laws of every form, fits each with the default form and with its own,
and counts how often the 90% prediction interval holds the loss of a run at the optimum that the fit recommends. The
third gives a constant of `flopsfit_ds.fit` other values and tells what that costs and changes, over planted laws of
every form, with clean and with spoilt losses. The last two count warnings over clean and spoilt sweeps, and print
figures that thresholds are set beside.
"""

import argparse
import importlib
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit import ScalingFit, fit_scaling_law
from flopsfit_ds.fit.checks.design import condition_number
from flopsfit_ds.fit.laws.registry import COMPUTE_ONLY, OF_REPEATS, SURFACES, get_law
from flopsfit_ds.fit.losses import make_loss
from flopsfit_ds.fit.planted import GridDesign, PlantedLaw, observe, planted_points, random_law
from flopsfit_ds.fit.points.points import Point, PointArrays
from flopsfit_ds.fit.points.ray import tokens_scatter
from flopsfit_ds.fit.scaling import make_problem
from flopsfit_ds.fit.solve.bootstrap import resample_weights
from flopsfit_ds.fit.solve.certificate import certified_fit
from flopsfit_ds.fit.solve.covariance import leverage
from flopsfit_ds.fit.solve.solver import Problem, minimise

PARAMETERS = ("loss_floor", "A", "B", "alpha", "beta", "a", "b")
FACTORS = (10.0, 100.0)
RAY_RUNS, RAY_NOISES, RAY_FACTORS = (6, 10), (0.001, 0.003, 0.005), (10.0, 30.0, 100.0)
RAY_RATIO = 20.0


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


def cover_rays(
    laws: int, samples: int, level: float, seed: int
) -> list[tuple[str, int, float, float, float, float, float]]:
    """Forecasts along planted rays: form, runs, noise, factor of compute; whether held, relative width, and score.

    The score is the interval's (Gneiting and Raftery 2007), both in shares of the loss.
    """
    rows: list[tuple[str, int, float, float, float, float, float]] = []
    for form in (*(name for name in SURFACES if name not in OF_REPEATS), COMPUTE_ONLY):
        rng = np.random.default_rng([seed, *map(ord, form)])
        for number, runs, noise in itertools.product(range(laws), RAY_RUNS, RAY_NOISES):
            if (runs, noise) == (RAY_RUNS[0], RAY_NOISES[0]):
                planted = random_law(form, rng)
            budgets = np.geomspace(1e18, 1e20, runs)
            sizes = np.sqrt(budgets / 6 / RAY_RATIO)
            points = observe(planted, sizes, RAY_RATIO * sizes, budgets, GridDesign(noise=noise), rng)
            fit = fit_scaling_law(points, bootstrap_samples=samples, seed=number, diagnostics=False)
            for factor in RAY_FACTORS:
                guess = fit.predict(factor * 1e20, level=level)
                true = float(planted.loss(np.array([guess.num_params]), np.array([guess.num_tokens]))[0])
                run = math.log(true) + noise * rng.standard_normal()
                low, high = math.log(guess.interval.low), math.log(guess.interval.high)
                missed = max(0.0, low - run, run - high)
                rows.append((form, runs, noise, factor, float(missed == 0), high - low, high - low + 20 * missed))
    return rows


def print_rays(rows: Sequence[tuple[str, int, float, float, float, float, float]], level: float) -> None:
    """Coverage of forecasts along rays by form, number of runs, noise and factor of compute."""
    print(f"{level:.0%} intervals along planted rays of {RAY_RATIO:g} tokens per parameter")
    print(f"{'':22s}forecasts  covered  median width   score")
    for column, what in enumerate(("", " runs", " of noise", " times beyond")):
        for value in dict.fromkeys(row[column] for row in rows):
            _print_ray(f"{value}{what}", [row for row in rows if row[column] == value])
    _print_ray("all", rows)


def _print_ray(name: str, rows: Sequence[tuple[str, int, float, float, float, float, float]]) -> None:
    held, width, score = np.array([row[4:] for row in rows]).T
    print(f"{name:22s}{len(rows):9d}{held.mean():9.3f}{np.median(width):14.2%}{score.mean():8.2%}")


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


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the solver made of one problem.

    Attributes:
        objective: Of the certified fit; infinite where it was refused.
        resampled: (samples,) objectives of the resampled fits, infinite where one did not converge.
        fit_seconds: CPU seconds of the certified fit.
        resample_seconds: CPU seconds of the resampled fits.
        iterations: Passes of the solver in the certified fit.
    """

    objective: float
    resampled: np.ndarray
    fit_seconds: float
    resample_seconds: float
    iterations: int


def test_problems(laws: int, design: GridDesign, seed: int) -> list[Problem]:
    """Problems of every form; in every second one a tenth of the losses is spoilt by up to 20%."""
    rng = np.random.default_rng(seed)
    found: list[Problem] = []
    for form in SURFACES:
        for number in range(laws):
            planted = random_law(form, rng)
            arrays = PointArrays.of(planted_points(planted, design, rng))
            problem = make_problem(get_law(form), make_loss("huber_log", 1e-3), arrays)
            if number % 2:
                spoilt = rng.random(len(arrays.loss)) < 0.1
                problem = problem._replace(log_loss=problem.log_loss + spoilt * rng.uniform(0, 0.2, len(spoilt)))
            found.append(problem)
    return found


def solve(problem: Problem, samples: int) -> Outcome:
    """Fit and resample one problem, always with the same draws."""
    began = time.process_time()
    try:
        fit = certified_fit(problem)
    except FitError:
        return Outcome(math.inf, np.full(samples, math.inf), time.process_time() - began, 0.0, 0)
    middle = time.process_time()
    count = problem.inputs.n.shape[0]
    weights = resample_weights(np.arange(count), samples, len(fit.theta), np.random.default_rng(0))
    ends = minimise(problem._replace(weights=weights), np.repeat(fit.theta[None], samples, axis=0), warm=True)
    resampled = np.where(ends.converged, ends.objective, math.inf)
    spent = time.process_time() - middle
    return Outcome(fit.objective, resampled, middle - began, spent, fit.certificate.iterations)


def vary_constant(name: str, values: Sequence[float], laws: int, design: GridDesign, samples: int, seed: int) -> None:
    """Print what each value of a constant costs, and how often another value finds a lower objective."""
    home, _, attribute = name.rpartition(".")
    module = importlib.import_module(f"flopsfit_ds.fit.{home}")
    kind, problems = type(getattr(module, attribute)), test_problems(laws, design, seed)
    table: dict[float, list[Outcome]] = {}
    for value in values:
        setattr(module, attribute, kind(value))
        table[value] = [solve(problem, samples) for problem in problems]
    best = np.array([min(outcomes[k].objective for outcomes in table.values()) for k in range(len(problems))])
    low = [np.min([outcomes[k].resampled for outcomes in table.values()], axis=0) for k in range(len(problems))]
    print(f"{name}: {len(problems)} problems, {samples} resamples each")
    print("value     fits missed   resamples missed   not converged   CPU s of fits   of resamples   passes of a fit")
    for value, outcomes in table.items():
        missed = sum(o.objective > b * (1 + 1e-6) + 1e-15 for o, b in zip(outcomes, best, strict=True))
        ends = np.concatenate([o.resampled for o in outcomes])
        worse = np.concatenate([o.resampled > at * (1 + 1e-6) + 1e-15 for o, at in zip(outcomes, low, strict=True)])
        spent = sum(o.fit_seconds for o in outcomes), sum(o.resample_seconds for o in outcomes)
        passes = np.mean([o.iterations for o in outcomes])
        print(
            f"{value:<12g}{missed:>9d}{worse.mean():>18.2%}{np.isinf(ends).mean():>16.2%}"
            f"{spent[0]:>16.2f}{spent[1]:>15.2f}{passes:>18.1f}"
        )


def count_warnings(laws: int, design: GridDesign, samples: int, seed: int) -> None:
    """Print how often each warning comes for Chinchilla laws: false alarms on clean sweeps, and on spoilt ones.

    Spoilt: a tenth of the losses, at random, is up to 5% too high.
    """
    rng = np.random.default_rng(seed)
    counts: dict[str, list[int]] = {}
    for _ in range(laws):
        clean = planted_points(random_law("chinchilla", rng), design, rng)
        bad = rng.random(len(clean)) < 0.1
        rise = rng.uniform(0, 0.05, len(clean))
        spoilt = [replace(p, loss=p.loss * (1 + b * r)) for p, b, r in zip(clean, bad, rise, strict=True)]
        for kind, points in enumerate((clean, spoilt)):
            for code in {w.code for w in fit_scaling_law(points, bootstrap_samples=samples).warnings}:
                counts.setdefault(code, [0, 0])[kind] += 1
    print(f"{laws} laws; share of fits with each warning")
    print(f"{'':24s}clean  spoilt")
    for code, (clean_count, spoilt_count) in sorted(counts.items()):
        print(f"{code:24s}{clean_count / laws:5.2f}{spoilt_count / laws:8.2f}")


def print_figures(laws: int, design: GridDesign, seed: int) -> None:
    """Print small figures that thresholds are set beside, over planted Chinchilla laws."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(laws):
        planted = random_law("chinchilla", rng)
        exact = planted_points(planted, replace(design, noise=0.0), rng)
        fit = fit_scaling_law(exact, bootstrap_samples=0, other_forms=False, diagnostics=False)
        note("largest residual of an exact law", float(np.abs(fit.residuals).max()))
        problem = make_problem(get_law("chinchilla"), make_loss("huber_log", 1e-3), PointArrays.of(exact))
        best = certified_fit(problem)
        note("condition number", condition_number(problem, best))
        hat = leverage(problem.law.evaluate(best.theta[None], problem.inputs).jacobian()[0])
        note("largest leverage over its mean", float(hat.max()) * len(hat) / len(best.theta))
        note("scatter of ln D about its line", tokens_scatter(problem.inputs.n, problem.inputs.d))
        optimum = fit.optima[-1]
        note("factor of N within 0.1% of loss", optimum.flat_factor)
        truth = float(np.log(planted.optimal_size(optimum.compute)))
        note("error of ln N* without noise", abs(math.log(optimum.num_params) - truth))
    for name, values in found.items():
        low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
        print(f"{name:36s} smallest {low:.3g}, median {middle:.3g}, largest {high:.3g}")


def main() -> None:
    """Run one of the studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["parameters", "predictions", "rays", "constant", "warnings", "figures"])
    parser.add_argument("--laws", type=int, default=200, help="laws (for predictions: of each form)")
    parser.add_argument("--budgets", type=float, nargs="+", default=list(GridDesign().budgets))
    parser.add_argument("--sizes", type=int, default=GridDesign().sizes_per_budget, help="sizes on each budget")
    parser.add_argument("--noise", type=float, default=GridDesign().noise)
    parser.add_argument("--samples", type=int, default=400, help="bootstrap resamples of each fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="constant: its module and name below flopsfit_ds.fit")
    parser.add_argument("--values", type=float, nargs="+", help="constant: the values to try")
    given = parser.parse_args()
    design = GridDesign(tuple(given.budgets), given.sizes, noise=given.noise)
    began = time.perf_counter()
    print(
        f"{len(design.budgets)} budgets x {design.sizes_per_budget} sizes, noise {design.noise:.2%}, seed {given.seed}"
    )
    if given.study == "parameters":
        for name, share in cover_parameters(given.laws, design, given.samples, 0.95, given.seed).items():
            print(f"{name:22s}{share:.3f}")
    elif given.study == "rays":
        print_rays(cover_rays(given.laws, given.samples, 0.9, given.seed), 0.9)
    elif given.study == "constant":
        if not given.name or not given.values:
            parser.error("constant needs --name and --values")
        vary_constant(given.name, given.values, given.laws, design, given.samples, given.seed)
    elif given.study == "warnings":
        count_warnings(given.laws, design, given.samples, given.seed)
    elif given.study == "figures":
        print_figures(given.laws, design, given.seed)
    else:
        print_predictions(cover_predictions(SURFACES, given.laws, design, given.samples, 0.9, given.seed), 0.9)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

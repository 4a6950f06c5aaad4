"""Sweeps of a known law, to judge the fitter by: random laws of every form, isoFLOP grids, noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.laws.base import Inputs, Law
from flopsfit_ds.fit.laws.registry import OF_REPEATS, get_law
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import CONVENTION, Point
from flopsfit_ds.model.flops import FLOPS_PER_PARAMETER_TOKEN

SIX_ND = ComputeRule.constant(math.log(FLOPS_PER_PARAMETER_TOKEN), CONVENTION)
REFERENCE_COMPUTE = 1e20  # the largest budget of `GridDesign`


@dataclass(frozen=True, eq=False)
class PlantedLaw:
    """A law with known parameters.

    Attributes:
        law: Its form.
        theta: (parameters,), about the centres of `inputs`.
        inputs: The centres: the optimum at REFERENCE_COMPUTE.
    """

    law: Law
    theta: FloatArray
    inputs: Inputs

    def loss(self, num_params: FloatArray, num_tokens: FloatArray, unique: FloatArray | None = None) -> FloatArray:
        """True loss, (points,)."""
        log_unique = None if unique is None else np.log(unique)
        at = self.inputs.at(np.log(num_params), np.log(num_tokens), log_unique)
        return np.exp(self.law.log_loss(self.theta[None], at)[0])

    def natural(self) -> dict[str, float]:
        """True parameters in plain units, and the exponents a and b of the optimum."""
        values = {k: float(v[0]) for k, v in self.law.natural(self.theta[None], self.inputs).items()}
        a = float(self.law.size_exponent_of_compute(self.theta[None])[0])
        return {**values, "a": a, "b": 1.0 - a}

    def optimal_size(self, compute: float) -> float:
        """True N* at 6 N D = compute."""
        log_n = self.law.log_optimum(self.theta[None], np.array([math.log(compute)]), SIX_ND, self.inputs)
        return float(np.exp(log_n[0, 0]))


def random_law(form: str, rng: np.random.Generator) -> PlantedLaw:
    """A law of this form with parameters in the range of published ones.

    Exponents 0.25 to 0.45 (0.06 to 0.16 where there is no floor, 0.12 to 0.22 of compute alone), 8 to 60 tokens per
    parameter and a loss of 2.2 to 3.2 at 1e20 FLOPs, of which 15 to 45% is reducible.
    """
    law = get_law(form)
    ratio = math.exp(rng.uniform(math.log(8.0), math.log(60.0)))
    log_n = 0.5 * math.log(REFERENCE_COMPUTE / FLOPS_PER_PARAMETER_TOKEN / ratio)
    inputs = Inputs(np.zeros(1), np.zeros(1), log_n, log_n + math.log(ratio))
    total, reducible = rng.uniform(2.2, 3.2), rng.uniform(0.15, 0.45)
    floor, rest = total * (1 - reducible), math.log(total * reducible)
    alpha, beta = rng.uniform(0.25, 0.45, size=2)
    share = beta / (alpha + beta)
    split = [rest + math.log(share), rest + math.log(1 - share)]
    half = [rest - math.log(2.0)] * 2
    if form == "chinchilla":
        theta = [floor, *split, alpha, beta]
    elif form == "data-constrained":
        theta = [floor, *split, alpha, beta, math.log(rng.uniform(5.0, 30.0))]
    elif form == "excess-parameters":
        decays = [math.log(rng.uniform(5.0, 30.0)), math.log(rng.uniform(2.0, 10.0))]
        theta = [floor, *split, alpha, beta, *decays]
    elif form == "compute":
        theta = [floor, rest, rng.uniform(0.12, 0.22)]
    elif form == "chinchilla-tied":
        theta = [floor, *half, alpha]
    elif form == "overtraining":
        eta = 0.5 * alpha
        theta = [floor, *half, eta, eta * rng.uniform(0.8, 1.25)]
    else:
        theta = _mixed_theta(form, floor, rest, math.log(total), rng)
    return PlantedLaw(law, np.array(theta), inputs)


def _mixed_theta(form: str, floor: float, rest: float, total: float, rng: np.random.Generator) -> list[float]:
    rho = rng.uniform(0.75, 1.35)
    share = 1.0 / (1.0 + rho)
    beta = rng.uniform(0.06, 0.16) if form == "kaplan" else rng.uniform(0.3, 0.5)
    level = total if form == "kaplan" else rest
    mixed = [level + beta * math.log(share), level + beta * math.log(1 - share), beta * rho, beta]
    return mixed if form == "kaplan" else [floor, *mixed]


@dataclass(frozen=True)
class GridDesign:
    """An isoFLOP grid about the true optimum.

    Attributes:
        budgets: FLOPs.
        sizes_per_budget: Points on each budget.
        size_range: Largest size over smallest, on each budget.
        noise: Standard deviation of ln L between runs.
        repeats: Share of the median tokens that is unique; None for fresh data throughout.
    """

    budgets: tuple[float, ...] = (1e18, 3e18, 1e19, 3e19, 1e20)
    sizes_per_budget: int = 8
    size_range: float = 16.0
    noise: float = 0.002
    repeats: float | None = None


def planted_points(planted: PlantedLaw, design: GridDesign, rng: np.random.Generator) -> list[Point]:
    """Noisy points of the law on the grid, each budget centred within a factor 1.5 of the true optimum."""
    sizes: list[float] = []
    tokens: list[float] = []
    budgets: list[float] = []
    for budget in design.budgets:
        centre = planted.optimal_size(budget) * math.exp(rng.uniform(-0.4, 0.4))
        half = math.sqrt(design.size_range)
        for size in np.geomspace(centre / half, centre * half, design.sizes_per_budget):
            sizes.append(float(size))
            tokens.append(budget / FLOPS_PER_PARAMETER_TOKEN / float(size))
            budgets.append(budget)
    return observe(planted, sizes, tokens, budgets, design, rng)


def observe(
    planted: PlantedLaw,
    sizes: Sequence[float],
    tokens: Sequence[float],
    budgets: Sequence[float],
    design: GridDesign,
    rng: np.random.Generator,
) -> list[Point]:
    """Points at these sizes with noise; data repeats where the design says so or the form needs it."""
    n, d = np.array(sizes), np.array(tokens)
    repeats = design.repeats if planted.law.name not in OF_REPEATS else design.repeats or 1.0
    unique = None if repeats is None else np.full_like(d, repeats * float(np.median(d)))
    loss = planted.loss(n, d, unique) * np.exp(design.noise * rng.standard_normal(len(n)))
    return [
        Point(
            num_params=float(n[i]),
            num_tokens=float(d[i]),
            loss=float(loss[i]),
            unique_tokens=None if unique is None else float(unique[i]),
            compute_budget_flops=budgets[i],
        )
        for i in range(len(n))
    ]

"""What must hold for any data: units, order and copies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopsfit_ds.fit import Point, ScalingFit, fit_scaling_law
from flopsfit_ds.fit.laws.registry import SURFACES
from helpers.fit.planted_sweeps import sweep

SEEDS = st.integers(0, 10_000)


def quick(points: list[Point], **options: object) -> ScalingFit:
    options = {"bootstrap_samples": 0, "other_forms": False, "diagnostics": False, **options}
    return fit_scaling_law(points, **options)  # type: ignore[arg-type]


@settings(max_examples=15)
@given(SEEDS, st.sampled_from([1e-6, 1e-3, 7.0, 1e4]), st.sampled_from([1e-5, 0.3, 1e3]), st.floats(0.2, 5.0))
def test_units_do_not_matter(seed: int, size_unit: float, token_unit: float, loss_unit: float) -> None:
    _, points = sweep(seed)
    other = [
        replace(
            p,
            num_params=p.num_params * size_unit,
            num_tokens=p.num_tokens * token_unit,
            loss=p.loss * loss_unit,
            flops=6 * p.num_params * p.num_tokens * size_unit * token_unit,
            compute_budget_flops=None,
        )
        for p in points
    ]
    one, two = quick(points), quick(other)
    assert two.objective == pytest.approx(one.objective, rel=1e-7)
    assert two.law.alpha == pytest.approx(one.law.alpha, rel=1e-4)
    assert two.law.a == pytest.approx(one.law.a, rel=1e-4)
    assert two.law.loss_floor == pytest.approx(one.law.loss_floor * loss_unit, rel=1e-4)
    size = one.optimum(1e21).num_params * size_unit
    assert two.optimum(1e21 * size_unit * token_unit).num_params == pytest.approx(size, rel=1e-3)


@settings(max_examples=15)
@given(SEEDS, st.randoms(use_true_random=False))
def test_order_does_not_matter(seed: int, random) -> None:
    _, points = sweep(seed)
    shuffled = list(points)
    random.shuffle(shuffled)
    one, two = quick(points, bootstrap_samples=40), quick(shuffled, bootstrap_samples=40)
    assert one.law == two.law
    assert one.intervals == two.intervals
    assert one.predict(1e22) == two.predict(1e22)


@settings(max_examples=5)
@given(SEEDS)
def test_copies_halve_nothing_but_the_intervals(seed: int) -> None:
    _, points = sweep(seed)
    one, four = quick(points, bootstrap_samples=300), quick(points * 4, bootstrap_samples=300)
    assert four.law.alpha == pytest.approx(one.law.alpha, rel=1e-5)
    assert four.optimum(1e21).num_params == pytest.approx(one.optimum(1e21).num_params, rel=1e-4)
    assert four.objective == pytest.approx(4 * one.objective, rel=1e-7)
    ratios = [four.standard_errors[k] / one.standard_errors[k] for k in ("alpha", "beta", "a", "loss_floor")]
    assert 0.35 < float(np.median(ratios)) < 0.65
    assert "duplicate_rows" in {w.code for w in four.warnings}


@settings(max_examples=12)
@given(SEEDS, st.sampled_from([form for form in SURFACES if form != "data-constrained"]))
def test_a_planted_law_is_recovered(seed: int, form: str) -> None:
    planted, points = sweep(seed, form, noise=2e-5, budgets=(1e18, 3e18, 1e19, 3e19, 1e20, 3e20))
    fit = quick(points, law=form)
    truth = planted.natural()
    assert fit.law.a == pytest.approx(truth["a"], abs=0.01)
    assert fit.law.alpha == pytest.approx(truth["alpha"], rel=0.05)
    size = planted.optimal_size(3e21)
    predicted = fit.predict(num_params=size, num_tokens=3e21 / 6 / size).loss
    assert predicted == pytest.approx(float(planted.loss(np.array([size]), np.array([3e21 / 6 / size]))[0]), rel=1e-3)

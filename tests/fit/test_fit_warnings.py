"""Each thing that must not be overlooked gives its warning by name, and a clean sweep gives none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flopsfit_ds.fit import Point, ScalingFit, fit_scaling_law
from flopsfit_ds.fit.checks.shapes import two_modes
from flopsfit_ds.fit.checks.warnings import FitView, collect_warnings
from flopsfit_ds.fit.laws.registry import get_law
from flopsfit_ds.fit.losses import make_loss
from flopsfit_ds.fit.planted import GridDesign, observe, planted_points, random_law
from flopsfit_ds.fit.points.points import PointArrays
from flopsfit_ds.fit.scaling import make_problem
from flopsfit_ds.fit.solve.certificate import certified_fit
from helpers.fit.planted_sweeps import sweep


def codes(fit: ScalingFit) -> set[str]:
    return {w.code for w in fit.warnings}


def on_a_ray(ratio: float, scatter: float) -> list[Point]:
    planted, _ = sweep()
    rng = np.random.default_rng(0)
    sizes = np.repeat(np.geomspace(1e7, 1e9, 12), 2)
    tokens = ratio * sizes * np.exp(scatter * rng.standard_normal(len(sizes)))
    budgets = [0.0] * len(sizes)
    found = observe(planted, list(sizes), list(tokens), budgets, GridDesign(), rng)
    return [replace(p, compute_budget_flops=None) for p in found]


def test_a_clean_sweep_has_no_warning() -> None:
    _, points = sweep()
    assert codes(fit_scaling_law(points, bootstrap_samples=300)) == set()


def test_a_fixed_ray_of_tokens_per_parameter() -> None:
    assert "single_ray" in codes(fit_scaling_law(on_a_ray(20.0, 0.0), bootstrap_samples=100))
    assert "single_ray" not in codes(fit_scaling_law(on_a_ray(20.0, 1.0), bootstrap_samples=100))


def test_isoflop_minima_at_an_edge_are_refused_and_told() -> None:
    planted, points = sweep(sizes_per_budget=14)
    cut = [p for p in points if p.num_params < 0.9 * planted.optimal_size(6 * p.num_params * p.num_tokens)]
    fit = fit_scaling_law(cut, bootstrap_samples=100)
    assert "edge_minimum" in codes(fit)
    refused = [b for b in fit.isoflop.budgets if b.refused]
    assert len(refused) == 5
    assert all(b.num_params is None and "larger sizes" in (b.refused or "") for b in refused)


def test_a_delta_that_changes_the_answer() -> None:
    planted, points = sweep(sizes_per_budget=10)

    def spoil(p: Point) -> Point:
        large = p.num_params > 2.0 * planted.optimal_size(6 * p.num_params * p.num_tokens)
        return replace(p, loss=p.loss * 1.05) if large and (p.compute_budget_flops or 0) > 2e19 else p

    spoilt = [spoil(p) for p in points]
    assert 2 < sum(a is not b for a, b in zip(points, spoilt, strict=True)) < 10
    found = codes(fit_scaling_law(spoilt, bootstrap_samples=200))
    assert "delta_sensitive" in found
    assert "backtest_miss" in found  # the top budgets are the spoilt ones


def test_two_modes_in_a_bootstrap() -> None:
    rng = np.random.default_rng(3)
    planted = random_law("chinchilla", rng)
    points = planted_points(planted, GridDesign((1e18, 3e18), 6), rng)
    far = planted_points(planted, GridDesign((1e20,), 1, 1.5), rng)
    fit = fit_scaling_law([*points, replace(far[0], loss=0.9 * far[0].loss)], bootstrap_samples=600)
    assert "two_modes" in codes(fit)


@pytest.mark.parametrize("seed", range(5))
def test_one_heap_is_not_called_two(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert two_modes(rng.standard_normal(1000)) is None
    assert two_modes(rng.uniform(size=1000)) is None
    assert two_modes(np.exp(0.5 * rng.standard_normal(1000))) is None
    both = np.concatenate([rng.standard_normal(300), 8 + rng.standard_normal(700)])
    assert two_modes(both) == pytest.approx((0.0, 8.0), abs=0.3)


def test_a_form_that_the_points_refute() -> None:
    _, points = sweep(form="kaplan")
    fit = fit_scaling_law(points, bootstrap_samples=200)
    assert {"form_refuted", "residual_trend"} <= codes(fit)
    assert fit.diagnostics is not None
    assert fit.diagnostics.forms[0].law == "kaplan"  # ranked by the back-test


def test_one_point_that_pulls_is_named_and_stays() -> None:
    _, points = sweep()
    spoilt = [replace(p, row=k) for k, p in enumerate(points)]
    last = max(spoilt, key=lambda p: (p.compute_flops, p.num_params))
    spoilt[last.row or 0] = replace(last, loss=1.1 * last.loss)
    fit = fit_scaling_law(spoilt, loss="squared_log", bootstrap_samples=200)
    assert "influential_point" in codes(fit)
    assert len(fit.points) == len(points)
    assert fit.diagnostics is not None
    suspect = fit.diagnostics.suspects[0]
    assert suspect.row == last.row
    rest = [p for p in spoilt if p.row != last.row]
    without = fit_scaling_law(rest, loss="squared_log", bootstrap_samples=0, other_forms=False, diagnostics=False)
    assert suspect.a_without == pytest.approx(without.law.a, abs=1e-5)


@pytest.mark.parametrize("noise", [0.0001, 0.002])
def test_a_run_that_diverged_is_named_though_the_huber_loss_holds(noise: float) -> None:
    _, points = sweep(noise=noise)
    bad = max(range(len(points)), key=lambda k: points[k].compute_flops)
    spoilt = [replace(p, row=k + 1, label=f"run-{k}") for k, p in enumerate(points)]
    spoilt[bad] = replace(spoilt[bad], loss=2.8 * spoilt[bad].loss)
    fit = fit_scaling_law(spoilt, bootstrap_samples=200)
    (told,) = (w.message for w in fit.warnings if w.code == "influential_point")
    assert told.startswith(f"row {bad + 1} (run-{bad}): its loss is +1")
    pulled = [w.message for w in fit.warnings if w.code == "delta_sensitive"]
    assert all(f"row {bad + 1} (run-{bad}) (+1" in message for message in pulled)
    assert pulled


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budgets", [(1e12, 2.5e12, 6e12), (1e12, 3e12)])
def test_small_sweeps_give_valleys_a_fit_and_honest_intervals(seed: int, budgets: tuple[float, ...]) -> None:
    _, points = sweep(seed, budgets=budgets, sizes_per_budget=5, noise=0.01)
    fit = fit_scaling_law(points, bootstrap_samples=100)
    assert len(fit.isoflop.budgets) == len(budgets)
    guess = fit.predict(10 * budgets[-1])
    assert guess.interval.low < guess.interval.high
    assert ("few_points" in codes(fit)) == (len(points) < 15)
    assert ("no_backtest" in codes(fit)) == (len(budgets) < 3)


def test_an_optimum_that_one_start_reached_is_told_and_its_own_nudges_do_not_count() -> None:
    _, points = sweep(56, budgets=(1e18, 3e18), sizes_per_budget=4, noise=0.1)
    problem = make_problem(get_law("chinchilla"), make_loss("huber", 1e-3), PointArrays.of(points))
    rare = certified_fit(problem)
    assert rare.certificate.starts > 16
    assert round(rare.certificate.best_share * rare.certificate.starts) == 1
    _, clean = sweep()
    result = fit_scaling_law(clean, bootstrap_samples=0, other_forms=False, diagnostics=False)
    view = FitView(
        points=result.points,
        problem=problem,
        fit=rare,
        at=result.at,
        draws=None,
        standard_errors={},
        intervals={},
        level=result.level,
        isoflop=result.isoflop,
        optima=result.optima,
        diagnostics=None,
        frontier=None,
        ray=None,
        asked="chinchilla",
    )
    told = {w.code: w.message for w in collect_warnings(view)}
    assert f"1 of {rare.certificate.starts} starts" in told["rare_optimum"]


@pytest.mark.parametrize(("decimals", "coarse"), [(1, True), (3, False), (15, False)])
def test_losses_rounded_as_coarsely_as_runs_scatter_are_told_by_number(decimals: int, coarse: bool) -> None:
    points = [replace(point, loss=round(point.loss, decimals)) for point in sweep()[1]]
    told = [w.message for w in fit_scaling_law(points, bootstrap_samples=20).warnings if w.code == "coarse_losses"]
    assert len(told) == coarse
    if coarse:
        mean = sum(point.loss for point in points) / len(points)
        assert f"all losses are multiples of 0.1: rounding alone scatters them by {0.1 / 12**0.5 / mean:.2%}" in told[0]
        assert "the interval of E, [" in told[0]


def test_a_floor_that_the_points_do_not_show() -> None:
    _, points = sweep(form="kaplan", seed=0)
    fit = fit_scaling_law(points, law="overtraining", bootstrap_samples=0)
    assert ("active_bound" in codes(fit)) == (fit.law.loss_floor < 0.01)


def test_profile_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    hits = total = 0
    for seed in range(25):
        planted, points = sweep(seed)
        fit = fit_scaling_law(points, bootstrap_samples=0, other_forms=False, level=0.9)
        truth = planted.natural()
        assert fit.diagnostics is not None
        for profile in fit.diagnostics.likelihood_profiles:
            if profile.parameter in ("alpha", "beta"):
                hits += profile.interval.contains(truth[profile.parameter])
                total += 1
    assert 0.78 <= hits / total <= 1.0

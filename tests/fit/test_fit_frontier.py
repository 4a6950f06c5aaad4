"""Loss against compute alone: runs on one ray, and the minima of budgets beside the law."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit import Point, fit_scaling_law, load_prediction_model
from flopsfit_ds.fit.planted import GridDesign, observe, random_law
from helpers.fit.planted_cli import invoke
from helpers.fit.planted_sweeps import sweep, write_csv


def chinchilla(n: float, d: float) -> float:
    return 1.7 + 400 / n**0.34 + 410 / d**0.28


def ladder(count: int = 9, ratio: float = 20.0, noise: float = 0.001, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(1e7, 1e9, count).tolist()
    scatter = np.exp(noise * rng.standard_normal(count)).tolist()
    return [Point(n, ratio * n, chinchilla(n, ratio * n) * e) for n, e in zip(sizes, scatter, strict=True)]


def test_runs_on_one_ray_are_fitted_by_compute_alone_and_what_is_not_known_is_said(tmp_path: Path) -> None:
    path, out = write_csv(tmp_path / "runs.csv", ladder()), tmp_path / "fit.json"
    code, text = invoke("fit", str(path), "-o", str(out), "--bootstrap-samples", "50")
    assert code == 0, text
    assert "compute: L = E + A/C^alpha" in text
    assert "about 20 tokens per parameter" in text
    assert "N*, D* and what another ratio costs are not known" in text
    assert "nan" not in text.lower()
    content = json.loads(out.read_text())
    assert content["law"]["form"] == "compute"
    assert not {"beta", "a", "b"} & set(content["law"])
    model = load_prediction_model(out)
    guess = model.predict(1.2e21)  # ten times the largest run
    assert guess.num_tokens / guess.num_params == pytest.approx(20.0, rel=0.01)
    assert 6 * guess.num_params * guess.num_tokens == pytest.approx(1.2e21, rel=1e-6)
    assert guess.interval.contains(chinchilla(guess.num_params, guess.num_tokens))
    assert math.log(guess.interval.high / guess.interval.low) < 0.05
    code, text = invoke("predict", str(out), "--num-params", "3B", "--num-tokens", "600B")
    assert code != 0


def test_a_model_off_the_ray_is_not_predicted() -> None:
    fit = fit_scaling_law(ladder(), bootstrap_samples=0, diagnostics=False)
    with pytest.raises(FitError, match=r"200 a parameter\) is not on it"):
        fit.predict(num_params=3e9, num_tokens=6e11)
    assert fit.optima == ()


def test_too_few_runs_on_a_ray_are_told_that_it_is_one() -> None:
    with pytest.raises(FitError, match="3 distinct points, all on one ray of about 20 tokens per parameter"):
        fit_scaling_law(ladder(3))


def test_a_floor_that_is_given_is_kept_and_narrows_the_forecast() -> None:
    points = ladder(noise=0.004)
    free, held = (fit_scaling_law(points, bootstrap_samples=50, loss_floor=floor) for floor in (None, 1.7))
    assert held.law.loss_floor == pytest.approx(1.7, rel=1e-9)
    assert "active_bound" not in {w.code for w in held.warnings}

    def width(fit) -> float:
        interval = fit.predict(fit.target_compute).interval
        return math.log(interval.high / interval.low)

    assert width(held) < 0.8 * width(free)
    with pytest.raises(FitError, match="smallest loss"):
        fit_scaling_law(points, loss_floor=3.0 * max(p.loss for p in points))
    with pytest.raises(FitError, match="has no floor"):
        fit_scaling_law(sweep()[1], law="kaplan", loss_floor=1.0)


def test_minima_of_budgets_give_a_frontier_that_agrees_with_its_law() -> None:
    planted, points = sweep(budgets=(1e18, 3e18, 1e19, 3e19, 1e20, 3e20))
    fit = fit_scaling_law(points, bootstrap_samples=100)
    front = fit.frontier
    assert front is not None
    assert front.num_minima == 6
    assert front.floor_from == "minima"
    best = fit.optimum(fit.target_compute)
    truth = float(planted.loss(np.array([best.num_params]), np.array([best.num_tokens]))[0])
    assert abs(math.log(front.loss_at_target / truth)) < max(0.01, 3 * front.log_standard_error)
    assert "frontier_disagrees" not in {w.code for w in fit.warnings}
    assert 0.0 <= front.weight < 0.6
    few = fit_scaling_law([p for p in points if (p.compute_budget_flops or 0) < 5e19], bootstrap_samples=0)
    assert few.frontier is not None
    assert few.frontier.floor_from == "law"
    assert few.frontier.log_standard_error < 0.02  # the floor that it was given does not vary


def restless() -> list[Point]:
    """Valleys whose width no form has, along a frontier that is exact: compute alone foresees the next budgets best."""
    rng = np.random.default_rng(0)
    points = []
    for budget in np.geomspace(1e18, 1e21, 9).tolist():
        for offset in np.linspace(-1.2, 1.2, 7).tolist():
            size = 8e7 * (budget / 1e18) ** 0.5 * math.exp(offset)
            flat = 0.02 * (1.0 + 0.8 * math.cos(3.0 * math.log(budget))) * offset**2
            loss = (1.7 + 1000 * budget**-0.155) * math.exp(flat + 0.0005 * rng.standard_normal())
            points.append(Point(size, budget / 6 / size, loss, compute_budget_flops=budget))
    return points


def test_a_frontier_counts_where_it_foresaw_later_budgets_better_than_the_forms() -> None:
    front = fit_scaling_law(restless(), bootstrap_samples=0, diagnostics=False).frontier
    assert front is not None
    assert front.weight > 0.05
    clean = fit_scaling_law(sweep(budgets=(1e18, 3e18, 1e19, 3e19))[1], bootstrap_samples=0, diagnostics=False).frontier
    assert clean is not None
    assert clean.weight == 0.0  # four minima: nothing was foreseen


def test_one_question_has_one_answer_by_compute_and_by_size() -> None:
    fit = fit_scaling_law(restless(), bootstrap_samples=0, diagnostics=False)
    assert any(member.law == "compute" and member.weight > 0 for member in fit.prediction.members)
    by_compute = fit.predict(1e22)
    by_size = fit.predict(num_params=by_compute.num_params, num_tokens=by_compute.num_tokens)
    assert by_size.loss == pytest.approx(by_compute.loss, rel=1e-9)
    assert by_size.interval.high == pytest.approx(by_compute.interval.high, rel=1e-9)


def test_a_frontier_that_leaves_the_law_is_told() -> None:
    """Losses at the best sizes fall more slowly from the middle on, which no surface of two powers can follow."""
    _, points = sweep(budgets=(1e18, 3e18, 1e19, 3e19, 1e20, 3e20, 1e21), noise=0.0005)

    def flatter(p: Point) -> Point:
        beyond = max(0.0, math.log((p.compute_budget_flops or 0.0) / 2e19))
        return replace(p, loss=p.loss * math.exp(0.02 * beyond**1.5))

    fit = fit_scaling_law([flatter(p) for p in points], bootstrap_samples=100)
    assert fit.frontier is not None
    assert {"frontier_disagrees", "backtest_miss", "residual_trend"} & {w.code for w in fit.warnings}


@pytest.mark.slow
def test_forecasts_along_a_ray_hold_about_as_often_as_they_say() -> None:
    """Over three forms of planted law; of one form alone it may be fewer, for a ray does not tell the forms apart.

    Measured: 33, 36 and 35 of 40; 30, 33 and 34 with the weights and the width of tables that are no ray.
    """
    rng = np.random.default_rng(5)
    held: dict[str, int] = {}
    for form in ("chinchilla", "kaplan", "compute"):
        held[form] = 0
        for _ in range(20):
            planted = random_law(form, rng)
            sizes = np.geomspace(3e7, 1e9, 8)
            points = observe(planted, list(sizes), list(20 * sizes), [0.0] * 8, GridDesign(noise=0.003), rng)
            fit = fit_scaling_law(
                [replace(p, compute_budget_flops=None) for p in points], bootstrap_samples=0, diagnostics=False
            )
            for factor in (10, 100):
                guess = fit.predict(factor * 1.2e20)
                truth = float(planted.loss(np.array([guess.num_params]), np.array([guess.num_tokens]))[0])
                held[form] += guess.interval.contains(truth * math.exp(0.003 * rng.standard_normal()))
    assert 0.85 <= sum(held.values()) / 120 <= 0.95, held
    assert min(held.values()) >= 0.7 * 40, held

"""What a fit says: minima, optima, predictions, JSON, and how often its intervals hold."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit import fit_scaling_law, isoflop_minima, load_points, load_prediction_model, predict
from flopsfit_ds.fit.forecast.prediction import PredictionModel
from flopsfit_ds.fit.planted import GridDesign, planted_points, random_law
from helpers.fit.planted_cli import invoke
from helpers.fit.planted_sweeps import sweep, write_csv


def test_isoflop_minima_find_the_planted_optima() -> None:
    planted, points = sweep(noise=0.0005, size_range=8.0)
    found = isoflop_minima(points)
    assert len(found.budgets) == 5
    for budget in found.budgets:
        assert budget.refused is None
        assert budget.num_params == pytest.approx(planted.optimal_size(budget.compute_flops), rel=0.12)
        assert budget.num_params is not None
        assert budget.num_tokens is not None
        assert budget.num_params * budget.num_tokens * 6 == pytest.approx(budget.compute_flops, rel=1e-6)
    assert found.size_law is not None
    assert found.size_law.exponent == pytest.approx(planted.natural()["a"], abs=0.03)


def test_isoflop_minima_need_no_law_and_few_points() -> None:
    _, points = sweep(budgets=(1e18, 3e18), sizes_per_budget=5, noise=0.01)
    one = [p for p in points if p.compute_budget_flops == 1e18]
    with pytest.raises(FitError):
        fit_scaling_law(one)
    assert len(isoflop_minima(one).budgets) == 1
    two = isoflop_minima(one[:2]).budgets
    assert [b.num_params for b in two] == [None]
    assert "at least 3" in (two[0].refused or "")


def test_budgets_are_inferred_from_compute() -> None:
    from dataclasses import replace

    _, points = sweep()
    rng = np.random.default_rng(0)
    loose = [replace(p, num_tokens=p.num_tokens * rng.uniform(0.99, 1.01), compute_budget_flops=None) for p in points]
    assert [b.num_points for b in isoflop_minima(loose).budgets] == [8] * 5


def test_the_optimum_is_the_best_size_and_its_band_is_flat() -> None:
    planted, points = sweep()
    fit = fit_scaling_law(points, bootstrap_samples=100, other_forms=False, diagnostics=False)
    optimum = fit.optimum(1e21)
    low, high = optimum.flat_band
    for size in (low, high):
        loss = fit.predict(num_params=size, num_tokens=1e21 / 6 / size).law_loss
        assert loss == pytest.approx(1.001 * optimum.loss, rel=1e-5)
    assert optimum.flat_factor > 1.1
    assert fit.optima[-1].compute == pytest.approx(1e21)  # ten times the largest budget
    assert fit.optima[-1].num_params == pytest.approx(planted.optimal_size(1e21), rel=0.15)
    assert fit.optima[-1].intervals["num_params"].contains(fit.optima[-1].num_params)


def test_a_served_model_is_smaller_and_cheaper_in_all() -> None:
    _, points = sweep()
    fit = fit_scaling_law(points, bootstrap_samples=0, other_forms=False, diagnostics=False)
    plain, served = fit.optimum(1e21), fit.serving_optimum(1e21, 1e12)
    assert served.num_params < plain.num_params
    assert served.num_tokens > plain.num_tokens
    assert fit.predict(num_params=served.num_params, num_tokens=served.num_tokens).law_loss == pytest.approx(plain.loss)
    assert served.total_compute < 1e21 + 2 * plain.num_params * 1e12
    assert fit.serving_optimum(1e21, 0.0).num_params == pytest.approx(plain.num_params, rel=0.01)


def test_prediction_intervals_hold_confidence_intervals_and_grow() -> None:
    _, points = sweep()
    fit = fit_scaling_law(points, bootstrap_samples=300)
    near, far = fit.predict(1e20), fit.predict(1e23)
    assert near.interval.low < near.confidence_interval.low
    for guess in (near, far):
        assert guess.interval.low <= guess.confidence_interval.low < guess.loss
        assert guess.loss < guess.confidence_interval.high <= guess.interval.high
    assert far.interval.high - far.interval.low > near.interval.high - near.interval.low
    wide, narrow = fit.predict(1e22, level=0.99).interval, fit.predict(1e22, level=0.5).interval
    assert wide.low < narrow.low < narrow.high < wide.high


def test_rows_to_drop_are_the_highest_finite_losses_and_columns_are_named(tmp_path: Path) -> None:
    _, points = sweep()
    path = write_csv(tmp_path / "runs.csv", points)
    path.write_text(path.read_text() + "1e8,1e9,nan\n1e8,2e9,inf\n")
    code, output = invoke("fit", str(path), "--drop-highest-losses", "2", "--bootstrap-samples", "0", "--json")
    assert code == 0
    reasons = [e["reason"] for e in json.loads(output)["excluded"]]
    assert sum("highest losses" in reason for reason in reasons) == 2
    assert json.loads(output)["num_points"] == 38
    for options in (["--drop-highest-losses", "-1"], ["--parameters", "non-embedding"]):
        assert invoke("fit", str(path), "--bootstrap-samples", "0", *options)[0] != 0


def test_the_bias_of_a_backtest_is_weighted_by_the_points_of_its_own_budgets() -> None:
    _, points = sweep(2, "overtraining", budgets=(1e18, 3e18, 1e19, 3e19, 1e20, 3e20, 1e21))
    few = [p for p in points if p.compute_budget_flops != 1e21] + points[-2:]
    found = fit_scaling_law(few, bootstrap_samples=0).diagnostics
    assert found is not None
    assert found.backtest is not None
    (own,) = (score for score in found.forms if score.law == "chinchilla")
    sizes = {1e20: 8, 3e20: 8, 1e21: 2}
    weights = [sizes[min(sizes, key=lambda b: abs(b / c - 1))] for c in found.backtest.held_out_computes]
    assert own.backtest_bias == pytest.approx(float(np.average(found.backtest.bias, weights=weights)))


def test_predict_says_what_the_fit_warns_of_and_how_far_it_goes(tmp_path: Path) -> None:
    _, points = sweep(form="kaplan")
    fit = fit_scaling_law(points, bootstrap_samples=50)
    (tmp_path / "fit.json").write_text(json.dumps(fit.to_json_dict()))
    code, output = invoke("predict", str(tmp_path / "fit.json"), "--compute", "1e24")
    assert code == 0
    assert "form_refuted" in output
    assert "10,000 times the largest compute" in output
    code, output = invoke("predict", str(tmp_path / "fit.json"), "--compute", "1e24", "--json")
    content = json.loads(output)
    assert "form_refuted" in {w["code"] for w in content["warnings"]}
    assert content["extrapolation"] == pytest.approx(1e4)


@pytest.mark.parametrize("form", ["chinchilla", "kaplan", "interaction"])
def test_an_exact_law_is_fitted_predicted_and_shown(form: str) -> None:
    planted, points = sweep(5, form, noise=0.0)
    fit = fit_scaling_law(points, law=form, bootstrap_samples=20)
    json.dumps(fit.to_json_dict(), allow_nan=False)
    guess = fit.predict(1e22)
    assert guess.interval.high / guess.interval.low < 1.02  # other tables say that no law is exact beyond its data
    true = planted.loss(np.array([guess.num_params]), np.array([guess.num_tokens]))
    assert guess.loss == pytest.approx(float(true[0]), rel=1e-6)


def test_predictions_refuse_what_makes_no_sense() -> None:
    _, points = sweep()
    fit = fit_scaling_law(points, bootstrap_samples=0, other_forms=False, diagnostics=False)
    for request in ({}, {"num_params": 1e9}, {"compute": -1.0}, {"compute": math.inf}, {"compute": 1e20, "level": 1.5}):
        with pytest.raises(FitError):
            fit.predict(**request)
    with pytest.raises(FitError):
        fit.predict(1e20, num_params=1e9, num_tokens=1e9)
    with pytest.raises(FitError):
        fit.predict(num_params=1e200, num_tokens=1e200)
    for compute in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(FitError):
            fit.optimum(compute)


def test_the_json_is_the_documented_interface_and_predicts_the_same(tmp_path: Path) -> None:
    _, points = sweep()
    fit = fit_scaling_law(points, bootstrap_samples=200)
    content = json.loads(json.dumps(fit.to_json_dict(), allow_nan=False))
    parts = {"law", "objective", "standard_errors", "intervals", "certificate", "isoflop", "warnings", "excluded"}
    assert parts <= set(content)
    assert {"form", "loss_floor", "A", "B", "alpha", "beta", "a", "b"} <= set(content["law"])
    assert {"starts", "best_share", "distinct_minima", "gradient_norm", "active_bounds"} <= set(content["certificate"])
    assert content["num_points"] == 40
    assert content["version"] == 1
    (tmp_path / "fit.json").write_text(json.dumps(content))
    model = load_prediction_model(tmp_path / "fit.json")
    for one, two in zip(predict(fit, [1e21, 1e24]), predict(model, [1e21, 1e24]), strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-9)
        assert two.interval.low == pytest.approx(one.interval.low, rel=1e-6)
        assert set(one.to_json_dict()) >= {"compute", "num_params", "num_tokens", "loss", "level", "interval"}
    assert isinstance(model, PredictionModel)


FORMAT = '{"format": "flopsfit-ds/fit", "version": '


@pytest.mark.parametrize("content", ["", "[]", "{}", FORMAT + "99}", FORMAT + "1}"])
def test_other_files_are_no_fit(tmp_path: Path, content: str) -> None:
    (tmp_path / "fit.json").write_text(content)
    with pytest.raises(FitError):
        load_prediction_model(tmp_path / "fit.json")
    with pytest.raises(FitError, match="cannot read"):
        load_prediction_model(tmp_path / "absent.json")


def test_the_command_line_and_the_library_are_the_same_thing(tmp_path: Path) -> None:
    _, points = sweep()
    data = write_csv(tmp_path / "runs.csv", points)
    code, output = invoke("fit", str(data), "--json", "--bootstrap-samples", "100", "--target-compute", "1e21")
    assert code == 0
    printed = json.loads(output)
    fit = fit_scaling_law(load_points(data).points, bootstrap_samples=100, target_compute=1e21)
    assert printed == json.loads(json.dumps(fit.to_json_dict(), allow_nan=False))
    (tmp_path / "fit.json").write_text(output)
    code, output = invoke("predict", str(tmp_path / "fit.json"), "--compute", "1e22", "--level", "0.8", "--json")
    assert code == 0
    mine = fit.predict(1e22, level=0.8)
    answer = json.loads(output)
    assert answer["loss"] == pytest.approx(mine.loss, rel=1e-9)
    assert answer["interval"]["low"] == pytest.approx(mine.interval.low, rel=1e-6)
    code, output = invoke("predict", str(tmp_path / "fit.json"), "--num-params", "1B", "--num-tokens", "20B", "--json")
    assert json.loads(output)["compute"] == pytest.approx(1.2e20, rel=1e-9)


def test_the_table_for_people_names_what_matters(tmp_path: Path) -> None:
    _, points = sweep()
    data = write_csv(tmp_path / "runs.csv", [*points, points[0]])
    code, output = invoke("fit", str(data), "--bootstrap-samples", "50", "--inference-tokens", "1T")
    assert code == 0
    named = (
        "exponent of the size term",
        "compute-optimal",
        "tokens per parameter",
        "N within 0.1% of loss",
        "prediction interval",
        "to serve 1T",
    )
    for part in named:
        assert part in output
    assert "warning duplicate_rows" in output


def test_the_json_of_a_served_model(tmp_path: Path) -> None:
    _, points = sweep()
    data = write_csv(tmp_path / "runs.csv", points)
    code, output = invoke("fit", str(data), "--bootstrap-samples", "0", "--json", "--inference-tokens", "1T")
    assert code == 0
    assert json.loads(output)["serving_optimum"]["inference_tokens"] == 1e12


def test_valleys_are_shown_where_no_law_can_be_fitted(tmp_path: Path) -> None:
    _, points = sweep()
    data = write_csv(tmp_path / "runs.csv", [p for p in points if p.compute_budget_flops == 1e19])
    code, output = invoke("fit", str(data))
    assert code != 0
    assert "isoFLOP minima" in output
    assert "N*" in output
    assert "by the law" not in output


def test_importing_the_package_of_the_fit_imports_no_numpy() -> None:
    heavy = {"numpy", "scipy", "torch"}
    code = f"import sys, flopsfit_ds.fit, flopsfit_ds.cli.fitting.fit; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fitting_imports_no_torch() -> None:
    code = "import sys; from flopsfit_ds.fit import fit_scaling_law; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_parameter_intervals_cover() -> None:
    hits, total = 0, 0
    rng = np.random.default_rng(12)
    for seed in range(40):
        planted = random_law("chinchilla", rng)
        points = planted_points(planted, GridDesign(), rng)
        fit = fit_scaling_law(
            points, bootstrap_samples=200, level=0.95, seed=seed, other_forms=False, diagnostics=False
        )
        truth = planted.natural()
        for name in ("loss_floor", "A", "B", "alpha", "beta", "a"):
            hits += fit.intervals[name].contains(truth[name])
            total += 1
    assert 0.91 <= hits / total <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [*(pytest.param(form, marks=pytest.mark.long) for form in ("chinchilla", "overtraining")), "interaction"]
)
def test_predictions_with_the_default_form_cover_laws_of_other_forms(form: str) -> None:
    inside, plain = [], []
    rng = np.random.default_rng(4)
    for seed in range(12):
        planted = random_law(form, rng)
        points = planted_points(planted, GridDesign(), rng)
        fit = fit_scaling_law(points, bootstrap_samples=150, seed=seed, diagnostics=False)
        for factor in (10.0, 100.0):
            guess = fit.predict(1e20 * factor)
            true = float(planted.loss(np.array([guess.num_params]), np.array([guess.num_tokens]))[0])
            inside.append(guess.interval.contains(true * math.exp(0.002 * rng.standard_normal())))
            assert fit.draws is not None
            at = fit.at.inputs.at(np.log([guess.num_params]), np.log([guess.num_tokens]))
            low, high = np.quantile(fit.at.law.log_loss(fit.draws.theta, at)[:, 0], [0.05, 0.95])
            plain.append(low <= math.log(true) <= high)
    assert np.mean(inside) >= 0.75
    if form != "chinchilla":
        assert np.mean(inside) > np.mean(plain) + 0.3

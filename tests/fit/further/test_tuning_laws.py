"""Laws of the learning rate and the batch: planted grids are recovered, and edges of grids are told."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.cli.main import run
from flopsfit_ds.fit.further.tuning import TunedRun, fit_tuning

SIZES, RATIOS = (5e7, 1e8, 2e8, 4e8, 8e8), (10, 20, 80)
RATES, BATCHES = np.geomspace(1e-4, 3e-2, 10), np.geomspace(16, 2048, 8)


def best_rate(n, d):
    return 2e-3 * (n / 2e8) ** -0.45 * (d / 4e9) ** 0.15


def best_batch(d):
    return 200 * (d / 4e9) ** 0.35


def grid(rng, batches=None, rates=RATES, noise=2e-4):
    runs = []
    for n in SIZES:
        for d in (n * ratio for ratio in RATIOS):
            base = 1.7 + (n / 1e6) ** -0.3 + (d / 1e8) ** -0.3
            for batch in [None] if batches is None else batches:
                off_batch = 0.0 if batch is None else np.log(batch / best_batch(d))
                for rate in rates:
                    off = np.log(rate / best_rate(n, d)) - 0.3 * off_batch  # larger batches bear larger rates
                    worse = 0.006 * off**2 + 0.0006 * off**3 + 0.004 * off_batch**2
                    runs.append(TunedRun(n, d, base * np.exp(worse + noise * rng.standard_normal()), rate, batch))
    return runs


def test_planted_exponents_are_found_and_their_intervals_hold_about_as_often_as_they_say():
    inside, errors = [], []
    for seed in range(40):
        (law,) = fit_tuning(grid(np.random.default_rng(seed))).laws
        (a, ends_a), (b, ends_b) = law.exponents["N"], law.exponents["D"]
        inside += [ends_a.contains(-0.45), ends_b.contains(0.15)]
        errors += [abs(a + 0.45), abs(b - 0.15)]
    assert max(errors) < 0.06
    assert 0.78 <= np.mean(inside) <= 0.99  # 90%, of 80


def test_learning_rate_and_batch_together():
    rates, batches = fit_tuning(grid(np.random.default_rng(0), BATCHES)).laws
    assert rates.exponents["N"][0] == pytest.approx(-0.45, abs=0.05)
    assert batches.exponents["D"][0] == pytest.approx(0.35, abs=0.05)
    assert batches.exponents["N"][0] == pytest.approx(0.0, abs=0.05)
    told, ends = batches.predict(1e9, 2e10)
    assert ends.low < told < ends.high
    assert told == pytest.approx(best_batch(2e10), rel=0.15)


def test_an_optimum_at_the_grids_edge_is_told_and_bends_no_law():
    cut = [run for run in grid(np.random.default_rng(1)) if run.num_params > 6e7 or run.learning_rate < 1.5e-3]
    fit = fit_tuning(cut)
    at_edge = [o for o in fit.optima if o.edges]
    assert {o.num_params for o in at_edge} == {5e7}
    assert {o.edges["learning_rate"] for o in at_edge} == {"highest"}
    assert fit.laws[0].num_inside == len(fit.optima) - len(at_edge)
    assert fit.laws[0].exponents["N"][0] == pytest.approx(-0.45, abs=0.06)


def test_on_a_ray_the_size_stands_for_both():
    runs = [run for run in grid(np.random.default_rng(2)) if round(run.num_tokens / run.num_params) == 20]
    (law,) = fit_tuning(runs).laws
    assert set(law.exponents) == {"N"}
    assert law.exponents["N"][0] == pytest.approx(-0.45 + 0.15, abs=0.06)


def test_two_rates_make_no_optimum():
    with pytest.raises(FitError, match="three learning rates"):
        fit_tuning(grid(np.random.default_rng(3), rates=RATES[3:5]))


def test_the_command_prints_the_laws_and_says_what_lies_at_the_edge(tmp_path, capsys):
    path = tmp_path / "tuning.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["params", "tokens", "loss", "lr", "batch"])
        for run_ in grid(np.random.default_rng(4), BATCHES[:6]):
            table.writerow([run_.num_params, run_.num_tokens, run_.loss, run_.learning_rate, run_.batch])
        table.writerow([1e8, 2e9, 3.0, "fast", 64])
    asked = ["laws", str(path), "--tuning", "lr,batch", "--num-params", "1B", "--num-tokens", "20B"]
    assert run(asked) == 0
    told = capsys.readouterr().out
    assert "learning_rate = c * N^a * D^b" in told
    assert "lie at the edge of their grid" in told  # the largest batch tried is 362
    assert "best learning_rate at 1B parameters and 20B tokens" in told
    assert "'fast'" in told
    assert run([*asked, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    rate = next(law for law in content["laws"] if law["setting"] == "learning_rate")
    assert rate["exponents"]["N"]["value"] == pytest.approx(-0.45, abs=0.06)
    assert rate["prediction"]["best"] == pytest.approx(best_rate(1e9, 2e10), rel=0.2)


def test_a_batch_that_never_varies_is_at_no_edge_and_one_column_is_not_two_settings(tmp_path, capsys):
    path = tmp_path / "grid.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["num_params", "num_tokens", "loss", "lr", "bs"])
        writer.writerows(
            (r.num_params, r.num_tokens, r.loss, r.learning_rate, 64) for r in grid(np.random.default_rng(0))
        )
    assert run(["laws", str(path), "--tuning", "lr,bs"]) == 0
    told = capsys.readouterr().out
    assert "batch: 15 of 15 pairs of N and D were run at fewer than three of its values" in told
    assert "batch: 15 of 15 optima lie at the edge" not in told
    assert run(["laws", str(path), "--tuning", "lr,lr"]) == 2
    assert "lr is named twice" in capsys.readouterr().err

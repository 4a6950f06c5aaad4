"""Repeated data: what it costs is predicted by the forms that have seen it, and refused where no run has."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit import Point, fit_scaling_law
from flopsfit_ds.fit.planted import PlantedLaw, random_law
from helpers.fit.planted_cli import invoke
from helpers.fit.planted_sweeps import sweep


def repeated(form: str, seed: int, noise: float = 0.001) -> tuple[PlantedLaw, list[Point]]:
    """Sizes on either side of the best, over 1 to 40 epochs of their unique tokens."""
    rng = np.random.default_rng(seed)
    planted = random_law(form, rng)
    points = []
    for size in np.geomspace(3e7, 1e9, 6).tolist():
        for unique in (2e8, 1e9, 5e9):
            for epochs in (1.0, 4.0, 12.0, 40.0):
                loss = float(planted.loss(np.array([size]), np.array([unique * epochs]), np.array([unique]))[0])
                points.append(
                    Point(size, unique * epochs, loss * math.exp(noise * rng.standard_normal()), unique_tokens=unique)
                )
    return planted, points


def truth(planted: PlantedLaw, size: float, tokens: float, unique: float) -> float:
    return float(planted.loss(np.array([size]), np.array([tokens]), np.array([unique]))[0])


@pytest.mark.parametrize("form", ["data-constrained", "excess-parameters"])
def test_what_repeats_cost_is_predicted(form: str) -> None:
    planted, points = repeated(form, 1)
    fit = fit_scaling_law(points, law=form, bootstrap_samples=0, diagnostics=False)
    size, tokens, unique = 2e9, 2e11, 1e10
    guess = fit.predict(num_params=size, num_tokens=tokens, unique_tokens=unique)
    fresh = fit.predict(num_params=size, num_tokens=tokens)
    assert guess.interval.contains(truth(planted, size, tokens, unique))
    assert abs(math.log(guess.loss / truth(planted, size, tokens, unique))) < 0.01
    assert guess.loss > fresh.loss
    assert fresh.assumes_fresh
    assert not guess.assumes_fresh
    whole = fit.predict(num_params=size, num_tokens=tokens, unique_tokens=tokens)
    assert whole.loss == pytest.approx(fresh.loss, rel=1e-12)


def test_excess_parameters_are_worth_less_only_where_data_repeats_and_are_found() -> None:
    planted, points = repeated("excess-parameters", 2, noise=0.0)
    fit = fit_scaling_law(points, law="excess-parameters", bootstrap_samples=0, other_forms=False, diagnostics=False)
    natural = planted.natural()
    for name in ("R", "R_N"):
        assert fit.law.own[name] == pytest.approx(natural[name], rel=0.02)
    noisy = repeated("excess-parameters", 2, noise=0.001)[1]
    scores = fit_scaling_law(noisy, bootstrap_samples=0).diagnostics
    assert scores is not None
    errors = {score.law: score.noise for score in scores.forms}
    assert errors["excess-parameters"] < errors["data-constrained"] < errors["chinchilla"]


def test_without_repeats_in_the_table_their_cost_is_refused(tmp_path: Path) -> None:
    fit = fit_scaling_law(sweep()[1], bootstrap_samples=0, diagnostics=False)
    with pytest.raises(FitError, match="no run of this fit did"):
        fit.predict(num_params=1e9, num_tokens=1e11, unique_tokens=1e10)
    assert not fit.predict(num_params=1e9, num_tokens=1e11).assumes_fresh


def test_the_command_says_what_it_takes_for_fresh(tmp_path: Path) -> None:
    fit = fit_scaling_law(repeated("data-constrained", 1)[1], bootstrap_samples=0, diagnostics=False)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(fit.to_json_dict()))
    asked = ("predict", str(path), "--num-params", "2B", "--num-tokens", "200B")
    code, text = invoke(*asked)
    assert code == 0, text
    assert "all tokens are taken to be fresh" in text
    code, text = invoke(*asked, "--unique-tokens", "10B")
    assert code == 0, text
    assert "10B of the tokens are unique" in text


def test_repeats_that_cost_nothing_set_no_upper_bound_and_it_is_said(tmp_path: Path) -> None:
    _, points = repeated("data-constrained", 3, noise=0.0)
    chinchilla = random_law("chinchilla", np.random.default_rng(3))
    free = [
        replace(p, loss=float(chinchilla.loss(np.array([p.num_params]), np.array([p.num_tokens]))[0])) for p in points
    ]
    fit = fit_scaling_law(free, law="data-constrained", bootstrap_samples=0, other_forms=False, diagnostics=False)
    told = [w.message for w in fit.warnings if w.code == "active_bound"]
    assert any("set no upper bound on R" in message for message in told)
    asked = {"num_params": 2e9, "num_tokens": 2e11}
    assert fit.predict(**asked, unique_tokens=1e10).unbounded == ("R",)
    assert fit.predict(**asked).unbounded == ()
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(fit.to_json_dict()))
    code, text = invoke("predict", str(path), "--num-params", "2B", "--num-tokens", "200B", "--unique-tokens", "10B")
    assert code == 0, text
    assert "these runs set no upper bound on R:" in " ".join(text.split())
    bounded = fit_scaling_law(points, law="data-constrained", bootstrap_samples=0, other_forms=False, diagnostics=False)
    assert bounded.predict(**asked, unique_tokens=1e10).unbounded == ()

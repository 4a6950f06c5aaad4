"""A registered forecast cannot be changed unseen, and its scores are those of the literature."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from flopsfit_ds.decide.forecasts.registered import PROBABILITIES, Band, Forecast, Registered, load_forecast
from flopsfit_ds.decide.forecasts.scoring import expected_hits, score_forecast, summarise
from flopsfit_ds.fit import fit_scaling_law
from flopsfit_ds.fit.result import load_fit_points
from helpers.cli_in_process import invoke, run_json
from helpers.fit.planted_sweeps import sweep

NORMAL = NormalDist()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    _, points = sweep(5)
    fit = fit_scaling_law(points, bootstrap_samples=0, diagnostics=False)
    path = tmp_path_factory.mktemp("fit") / "fit.json"
    path.write_text(json.dumps(fit.to_json_dict()))
    return path


@pytest.fixture
def registered(fitted, tmp_path) -> Path:
    path = tmp_path / "forecast.json"
    code, output = invoke("register", fitted, "--compute", "1e22", "-o", path)
    assert code == 0, output
    assert json.loads(path.read_text())["digest"] in output
    return path


def normal_forecast(centre: float, spread: float, number: int = 0) -> Registered:
    """A forecast that is normal in ln L."""
    bands = tuple(
        Band(level, centre * math.exp(-spread * z), centre * math.exp(spread * z))
        for level in (0.5, 0.8, 0.9, 0.95)
        for z in [float(NORMAL.inv_cdf(0.5 + level / 2))]
    )
    quantiles = tuple(centre * math.exp(spread * float(NORMAL.inv_cdf(p))) for p in PROBABILITIES)
    made = f"2026-01-01T00:00:{number % 60:02d}+00:00"
    forecast = Forecast(made, 1e22, 1e9, 1e12, centre, bands, quantiles, 10.0, {})
    return Registered(forecast, f"sha256:{number}")


def test_a_forecast_is_that_of_predict_and_holds_what_it_rests_on(fitted, registered):
    forecast = load_forecast(registered).forecast
    said = run_json("predict", fitted, "--compute", "1e22", "--level", "0.8", "--json")
    band = next(band for band in forecast.intervals if band.level == 0.8)
    assert (forecast.loss, band.low, band.high) == (said["loss"], said["interval"]["low"], said["interval"]["high"])
    rests_on = forecast.rests_on
    assert len(rests_on["points"]["rows"]) == len(load_fit_points(fitted)) == 40
    assert sum(rests_on["weights_of_forms"].values()) == pytest.approx(1.0)
    assert rests_on["program"]["package_sha256"]
    assert rests_on["options"]["points_sha256"]


def leaves(value: Any, path: tuple = ()) -> list[tuple]:
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in leaves(part, (*path, key))]
    if isinstance(value, list):
        return [leaf for key, part in enumerate(value[:2]) for leaf in leaves(part, (*path, key))]
    return [path]


def test_every_change_of_a_value_is_seen(registered):
    whole = json.loads(registered.read_text())
    for path in leaves(whole):
        changed = json.loads(registered.read_text())
        here = changed
        for key in path[:-1]:
            here = here[key]
        old = here[path[-1]]
        here[path[-1]] = old + 1e-9 * abs(old) + 1e-12 if isinstance(old, float) else f"{old}!"
        registered.with_name("changed.json").write_text(json.dumps(changed))
        code, output = invoke("score", f"{registered.with_name('changed.json')}=2.2")
        assert code in (1, 2), (path, output)
        assert "changed.json" in output
        assert output.count("\n") == 1


def test_a_value_that_stands_there_twice_or_beside_the_content_is_seen(registered):
    text = registered.read_text()
    for changed in (
        text.replace('"extrapolation":', '"loss": 1.0, "extrapolation":'),
        text.replace('"digest":', '"note": "better", "digest":'),
        text[: len(text) // 2],
    ):
        assert changed != text
        registered.write_text(changed)
        code, output = invoke("score", registered, "--loss", "2.2")
        assert (code, output.count("\n")) == (1, 1), output


def test_a_forecast_with_a_new_digest_is_not_the_published_one(registered, tmp_path):
    published = json.loads(registered.read_text())["digest"]
    assert invoke("score", registered, "--loss", "2.2", "--digest", published)[0] == 0
    code, output = invoke("score", registered, "--loss", "2.2", "--digest", "sha256:" + 64 * "0")
    assert code == 1
    assert published in output


def test_a_registered_forecast_is_not_overwritten(fitted, registered):
    before = registered.read_bytes()
    code, output = invoke("register", fitted, "--compute", "1e21", "-o", registered)
    assert code == 2
    assert "never overwritten" in output
    assert registered.read_bytes() == before


def test_a_fit_without_points_is_refused(fitted, tmp_path):
    content = json.loads(fitted.read_text())
    del content["points"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    code, output = invoke("register", tmp_path / "old.json", "--compute", "1e21", "-o", tmp_path / "f.json")
    assert code == 2
    assert "kept their points" in output


def test_many_are_scored_from_a_table_with_a_figure(fitted, tmp_path):
    rows = ["forecast,loss"]
    for compute in ("1e21", "3e21", "1e22"):
        path = tmp_path / f"{compute}.json"
        assert invoke("register", fitted, "--compute", compute, "-o", path)[0] == 0
        rows.append(f"{path.name},{load_forecast(path).forecast.loss * 1.001!r}")
    (tmp_path / "came.csv").write_text("\n".join(rows) + "\n")
    arguments = ("score", "--results", tmp_path / "came.csv", "--figure", tmp_path / "s.svg")
    table = run_json(*arguments, "--json")
    assert [len(table["forecasts"]), table["forecasts"][-1]["running"]["count"]] == [3, 3]
    assert all(level["inside"] == 3 for level in table["levels"])
    tips = [element.text or "" for element in ElementTree.parse(tmp_path / "s.svg").iter() if "title" in element.tag]
    assert sum("forecast" in tip and "measured" in tip for tip in tips) >= 3
    code, output = invoke(*arguments)
    assert code == 0
    assert "3 of 3 held" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.json", "--loss", "2"], "cannot read"),
        (["FORECAST"], "0 measured losses"),
        (["FORECAST=2.1", "--loss", "2"], "2 measured losses"),
        (["FORECAST=-1"], "positive"),
        (["FIT", "--loss", "2"], "register a forecast of it"),
    ],
)
def test_what_cannot_be_scored_is_said_on_one_line(arguments, words, fitted, registered):
    named = [a.replace("FORECAST", str(registered)).replace("FIT", str(fitted)) for a in arguments]
    code, output = invoke("score", *named)
    assert code == 2
    assert words in output
    assert output.count("\n") == 1


def test_crps_and_interval_score_are_those_of_a_normal_forecast():
    spread = 0.02
    for z in (-3.0, -0.4, 0.0, 1.1, 2.5):
        row = score_forecast(normal_forecast(2.5, spread), 2.5 * math.exp(spread * z), "f")
        exact = spread * (z * (2 * NORMAL.cdf(z) - 1) + 2 * NORMAL.pdf(z) - 1 / math.sqrt(math.pi))
        assert row.crps == pytest.approx(exact, rel=0.03, abs=2e-5)
        assert row.quantile == pytest.approx(min(max(NORMAL.cdf(z), 0.005), 0.995), abs=0.005)
        half = 1.6449 * spread
        missed = max(0.0, abs(spread * z) - half)
        assert next(h for h in row.hits if h.level == 0.9).score == pytest.approx(2 * half + 20 * missed, rel=1e-3)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "as expected"), (0.4, "too narrow"), (2.5, "too wide")])
def test_the_table_tells_intervals_that_hold_from_those_too_narrow_or_too_wide(factor, verdict):
    rng = np.random.default_rng(0)
    scored = [
        score_forecast(normal_forecast(2.5, 0.02 * factor, k), 2.5 * math.exp(0.02 * z), f"{k}")
        for k, z in enumerate(rng.standard_normal(200))
    ]
    assert {level.verdict for level in summarise(scored).levels if level.level <= 0.9} == {verdict}


def test_a_narrow_forecast_that_holds_beats_a_wide_one_and_one_that_misses():
    rng = np.random.default_rng(1)
    drawn = 2.5 * np.exp(0.02 * rng.standard_normal(300))
    means = {
        spread: summarise([score_forecast(normal_forecast(2.5, spread, k), float(x), "") for k, x in enumerate(drawn)])
        for spread in (0.005, 0.02, 0.08)
    }
    assert min(means, key=lambda s: means[s].running[-1].crps) == 0.02
    assert min(means, key=lambda s: means[s].levels[2].score) == 0.02


def test_expected_hits_hold_nine_tenths_of_what_chance_does():
    rng = np.random.default_rng(2)
    for count, level in ((1, 0.9), (7, 0.5), (40, 0.8), (3000, 0.9)):
        low, high = expected_hits(count, level)
        drawn = rng.binomial(count, level, size=4000)
        inside = float(((drawn >= low) & (drawn <= high)).mean())
        assert inside >= 0.89
        assert (drawn < low).mean() < 0.06
        assert (drawn > high).mean() < 0.06

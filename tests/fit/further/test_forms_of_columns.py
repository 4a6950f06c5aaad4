"""Forms with a further column are recovered, chosen by what they forecast, and refused where a column says nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from flopsfit_ds.base.errors import FitError, FlopsfitError
from flopsfit_ds.cli.fitting.laws import register
from flopsfit_ds.fit import fit_column
from flopsfit_ds.fit.further.kinds import KINDS
from flopsfit_ds.fit.laws.base import Inputs
from helpers.fit.column_sweeps import column_grid, write_with_column


def of_ratio(gamma):
    return lambda n, d, ratio: 1.7 + 400.0 / (n * ratio**gamma) ** 0.34 + 410.0 / d**0.28


def of_bits(n, d, bits):
    return 1.7 + 400.0 / (n * (1.0 - np.exp(-bits / 2.5))) ** 0.34 + 410.0 / d**0.28


def of_family(**laws):
    return lambda n, d, name: laws[name][0] + laws[name][1] / n ** laws[name][2] + laws[name][3] / d ** laws[name][4]


def experts(gamma, seed=0):
    points, ratios = column_grid(of_ratio(gamma), (1.0, 4.0, 16.0), seed)
    return points, [point.num_params * ratio for point, ratio in zip(points, ratios, strict=True)]


def chosen(fit):
    return next(form for form in fit.forms if form.name == fit.chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_each_form_agree_with_differences(kind):
    rng = np.random.default_rng(0)
    size, data = rng.normal(size=9), rng.normal(size=9)
    column = np.arange(9) % 3.0 + (0.0 if kind == "family" else 1.0)
    inputs = Inputs(size, data, 20.0, 24.0, column=column)
    for law in KINDS[kind].laws(3):
        lower, upper = law.bounds(np.log(np.linspace(2.5, 4.0, 9)))
        theta = lower + (upper - lower) * rng.uniform(0.3, 0.5, size=len(lower))
        weight = np.ones((1, 9))
        found = law.evaluate(theta[None], inputs)
        jacobian = found.jacobian()[0]
        curved = found.term_curvature(weight)[0] - (jacobian * weight) @ jacobian.T
        for k, step in enumerate(1e-5 * np.eye(len(theta))):
            up, down = (law.evaluate((theta + sign * step)[None], inputs) for sign in (1.0, -1.0))
            np.testing.assert_allclose(jacobian[k], (up.log_loss - down.log_loss)[0] / 2e-5, atol=1e-6)
            slope = (up.jacobian() - down.jacobian())[0].sum(axis=1) / 2e-5
            np.testing.assert_allclose(curved[k], slope, atol=1e-5, rtol=1e-4)


def test_experts_are_worth_what_was_planted():
    points, totals = experts(0.5)
    fit = fit_column(points, totals, "total-params")
    assert fit.chosen == "effective-parameters", fit.why
    best = chosen(fit)
    assert best.parameters["gamma"] == pytest.approx(0.5, abs=0.02)
    assert best.parameters["alpha"] == pytest.approx(0.34, abs=0.02)
    ends = best.intervals["gamma"]
    assert ends.low < best.parameters["gamma"] < ends.high < ends.low + 0.05
    truth = of_ratio(0.5)(2e9, 4e10, 8.0)
    told = fit.predict(2e9, 4e10, 1.6e10)
    assert told.interval.contains(truth)
    assert told.interval.low < told.loss < told.interval.high
    assert told.loss == pytest.approx(truth, rel=0.005)
    dense = fit.predict(2e9, 4e10, 2e9)
    assert dense.loss > told.interval.high


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, "one-law"), (1.0, "total-parameters")])
def test_a_simpler_law_of_experts_is_chosen_where_it_holds(gamma, expected):
    points, totals = experts(gamma, seed=2)
    fit = fit_column(points, totals, "total-params", bootstrap_samples=0)
    assert fit.chosen == expected, fit.why
    fitted = {form.name: form.residual for form in fit.forms}
    assert fitted["joint"] <= fitted[expected] * 1.02


def test_bits_are_worth_what_was_planted():
    points, bits = column_grid(of_bits, (3.0, 4.0, 8.0))
    fit = fit_column(points, bits, "bits")
    assert fit.chosen == "effective-bits", fit.why
    assert chosen(fit).parameters["gamma"] == pytest.approx(2.5, abs=0.15)
    assert fit.predict(1e9, 2e10, 2.0).loss > fit.predict(1e9, 2e10, 16.0).interval.high


FAMILIES = {"a": (1.7, 400.0, 0.34, 410.0, 0.28), "b": (1.9, 500.0, 0.34, 300.0, 0.28)}
OWN = {"a": (1.7, 400.0, 0.34, 410.0, 0.28), "b": (1.9, 500.0, 0.28, 300.0, 0.36)}


@pytest.mark.parametrize(
    ("laws", "expected"),
    [(FAMILIES, "shared-exponents"), (OWN, "own-exponents"), ({"a": OWN["a"], "b": OWN["a"]}, "one-law")],
)
def test_families_share_what_they_share(laws, expected):
    points, names = column_grid(of_family(**laws), tuple(laws), seed=5)
    fit = fit_column(points, names, "family", bootstrap_samples=0)
    assert fit.chosen == expected, fit.why
    assert fit.groups == ("a", "b")
    for name, law in laws.items():
        truth = of_family(**laws)(1e9, 2e10, name)
        assert fit.predict(1e9, 2e10, name).loss == pytest.approx(truth, rel=0.005), law
    with pytest.raises(FitError, match="no family 'c' among a, b"):
        fit.predict(1e9, 2e10, "c")


def test_intervals_cover_planted_parameters_neither_too_seldom_nor_always():
    held = []
    for seed in range(30):
        points, bits = column_grid(of_bits, (3.0, 4.0, 8.0), seed=100 + seed)
        form = chosen(fit_column(points, bits, "bits"))
        truth = {"E": 1.7, "alpha": 0.34, "beta": 0.28, "gamma": 2.5}
        held += [form.intervals[name].contains(value) for name, value in truth.items() if name in form.intervals]
    assert 0.82 <= np.mean(held) <= 0.97, f"{np.mean(held):.2f} of {len(held)}"


def test_nothing_is_chosen_by_its_fit_where_nothing_can_be_held_out():
    points, bits = column_grid(of_bits, (3.0, 4.0, 8.0), budgets=2)
    fit = fit_column(points, bits, "bits")
    assert fit.chosen is None
    assert "three budgets" in fit.why
    assert all(form.held_out_error is None and form.residual > 0 for form in fit.forms)
    with pytest.raises(FitError, match="no form can be gone by"):
        fit.predict(1e9, 2e10, 4.0)


def test_columns_that_say_nothing_are_refused():
    points, bits = column_grid(of_bits, (3.0, 4.0))
    cases = [
        ("bits", [4.0] * len(points), "never vary"),
        ("bits", [-1.0, *bits[1:]], "positive and finite, got -1"),
        ("total-params", [p.num_params / 2 for p in points], "fewer than the"),
        ("family", ["one", *["two"] * (len(points) - 1)], "'one' has 1 runs: at least 4"),
        ("colour", bits, "choose one of family, total-params, bits"),
        ("bits", bits[1:], "one for each"),
    ]
    for kind, values, words in cases:
        with pytest.raises(FitError, match=words):
            fit_column(points, values, kind)


def invoke(*arguments):
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, FlopsfitError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_reads_a_table_and_predicts(tmp_path):
    points, totals = experts(0.5)
    table = write_with_column(tmp_path / "runs.csv", points, [f"{t / 1e6!r}" for t in totals], "total (M)")
    with table.open("a") as more:
        more.write(f"{points[0].num_params!r},{points[0].num_tokens!r},3.0,\n")
    told = json.loads(invoke(table, "--total-params", "total (M)", "--json"))
    direct = fit_column(points, totals, "total-params")
    assert told["chosen"] == direct.chosen == "effective-parameters"
    gamma = {form["name"]: form for form in told["forms"]}["effective-parameters"]["parameters"]["gamma"]
    assert gamma == pytest.approx(chosen(direct).parameters["gamma"], rel=1e-4)
    assert told["excluded"][0]["row"] == len(points) + 1
    text = invoke(table, "--total-params", "total (M)", "--num-params", "2B", "--num-tokens", "40B", "--value", "16B")
    assert "effective-parameters" in text
    assert "interval of one run" in text
    assert "left out: row 91" in text


def test_the_command_names_what_is_missing(tmp_path):
    points, bits = column_grid(of_bits, (3.0, 4.0))
    table = write_with_column(tmp_path / "runs.csv", points, bits, "P")
    with pytest.raises(FlopsfitError, match="no column 'bits'; the columns are N, D, loss, P"):
        invoke(table, "--bits", "bits")
    with pytest.raises(FlopsfitError, match="give one of --family"):
        invoke(table)
    with pytest.raises(FlopsfitError, match="--num-params, --num-tokens and --value together"):
        invoke(table, "--bits", "P", "--num-params", "1B")


def test_scatter_alone_changes_no_choice_of_units():
    points, bits = column_grid(of_bits, (3.0, 4.0, 8.0))
    other = [replace(point, num_params=point.num_params * 10.0) for point in points]
    first, second = (fit_column(runs, bits, "bits", bootstrap_samples=0) for runs in (points, other))
    assert first.chosen == second.chosen
    assert chosen(first).parameters["gamma"] == pytest.approx(chosen(second).parameters["gamma"], rel=1e-5)

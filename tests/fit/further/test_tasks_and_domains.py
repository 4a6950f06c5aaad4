"""A task's accuracy by way of the loss, and several losses of one table: what was planted is found, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.further.accuracy import fit_accuracy
from flopsfit_ds.fit.further.domains import fit_losses, optima_differ
from helpers.cli_in_process import invoke, run_json
from helpers.fit.column_sweeps import column_grid

CHANCE = 0.25


def loss_of(n, d, _=None):
    return 1.7 + 400.0 / n**0.34 + 410.0 / d**0.28


def task(seed, middle=2.45, steepness=6.0, ceiling=0.85, noise=0.01):
    points, _ = column_grid(loss_of, (None,), seed)
    true = np.array([loss_of(point.num_params, point.num_tokens) for point in points])
    rng = np.random.default_rng(seed)
    seen = accuracy_of(true, middle, steepness, ceiling) + noise * rng.standard_normal(len(points))
    return points, np.clip(seen, 0.0, 1.0)


def accuracy_of(loss, middle=2.45, steepness=6.0, ceiling=0.85):
    return CHANCE + (ceiling - CHANCE) / (1.0 + np.exp(steepness * (loss - middle)))


@pytest.fixture(scope="module")
def fitted():
    points, seen = task(0)
    return fit_accuracy(points, seen, CHANCE, bootstrap_samples=200)


def test_a_run_far_larger_than_all_has_the_accuracy_that_was_planted(fitted):
    truth = accuracy_of(loss_of(2e9, 5e11))
    told = fitted.predict(num_params=2e9, num_tokens=5e11)
    assert told.interval.contains(truth)
    assert told.interval.contains(told.accuracy)
    assert told.interval.high - told.interval.low < 0.4
    assert told.loss == pytest.approx(loss_of(2e9, 5e11), rel=0.01)
    near = fitted.predict(num_params=1e9, num_tokens=2e10)
    assert near.interval.high - near.interval.low < told.interval.high - told.interval.low


def test_the_second_step_is_chosen_by_better_runs_and_its_parameters_are_found():
    points, seen = task(1, middle=2.7, ceiling=0.7, noise=0.003)
    fit = fit_accuracy(points, seen, CHANCE, bootstrap_samples=100)
    assert fit.chosen == "sigmoid-with-ceiling", fit.why
    best = next(form for form in fit.forms if form.name == fit.chosen)
    assert best.parameters["c"] == pytest.approx(0.7, abs=0.05)
    assert best.parameters["L0"] == pytest.approx(2.7, abs=0.03)
    points, seen = task(1, middle=2.7, ceiling=1.0, noise=0.003)
    plain = fit_accuracy(points, seen, CHANCE, bootstrap_samples=100)
    assert plain.chosen == "sigmoid", plain.why


def test_a_task_at_chance_says_nothing():
    points, seen = task(2, middle=0.5)
    with pytest.raises(FitError, match="has not begun to rise"):
        fit_accuracy(points, seen, CHANCE, bootstrap_samples=20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda points, seen: (points, 100 * seen, CHANCE), "divide per cent by 100"),
        (lambda points, seen: (points, seen, 25.0), "0.25 of four choices"),
        (lambda points, seen: (points, seen[:-1], CHANCE), "one for each"),
        (lambda points, seen: (points[:6], seen[:6], CHANCE), "7 are needed"),
    ],
)
def test_what_is_no_accuracy_is_refused(change, words):
    with pytest.raises(FitError, match=words):
        fit_accuracy(*change(*task(3)))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Code, whose best size is larger, and web; two rows without code; a column of accuracies."""
    points, seen = task(5)
    rng = np.random.default_rng(5)
    rows = ["N,D,code,web,quiz"]
    for k, (point, share) in enumerate(zip(points, seen, strict=True)):
        n, d = point.num_params, point.num_tokens
        code = (0.6 + 2000 / n**0.42 + 60 / d**0.22) * np.exp(0.002 * rng.standard_normal())
        rows.append(f"{n!r},{d!r},{'' if k < 2 else repr(float(code))},{point.loss!r},{float(share)!r}")
    path = tmp_path_factory.mktemp("losses") / "runs.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_each_loss_has_its_own_law_and_where_their_optima_part_is_said(table):
    code, web = fit_losses(table, ["code", "web"], bootstrap_samples=100)
    assert code.fit is not None
    assert web.fit is not None
    assert len(code.fit.points) == 28
    assert len(web.fit.points) == 30
    assert [gone.row for gone in code.excluded] == [1, 2]
    assert code.fit.law.loss_floor < 1.0 < web.fit.law.loss_floor
    assert code.fit.law.alpha == pytest.approx(0.42, abs=0.04)
    assert web.fit.law.alpha == pytest.approx(0.34, abs=0.04)
    assert "code and web" in (optima_differ([code, web]) or "")
    assert optima_differ([web, web]) is None


def test_the_command_tells_several_losses_and_a_task(table):
    code, output = invoke("laws", table, "--losses", "code,web", "--num-params", "1e9", "--num-tokens", "2e10")
    assert code == 0, output
    assert "code: loss 1." in output
    assert "left out: code: row 1" in output
    arguments = ("laws", table, "--accuracy", "quiz", "--loss-column", "web")
    found = run_json(*arguments, "--chance", "0.25", "--num-params", "1e9", "--num-tokens", "2e10", "--json")
    assert 0.25 < found["prediction"]["accuracy"] < 0.85
    for asked, words in (
        (arguments, "--accuracy needs --chance"),
        (("laws", table, "--losses", "web"), "two or more columns"),
        (("laws", table, "--losses", "web,maths"), "maths"),
        ((*arguments, "--chance", "0.25", "--num-params", "1e9"), "--num-params and --num-tokens together"),
    ):
        code, output = invoke(*asked)
        assert code == 2, output
        assert words in output
        assert output.count("\n") == 1

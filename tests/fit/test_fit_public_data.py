"""Points like the public ones of a published figure, read from a table like theirs: the published law is found."""

from __future__ import annotations

import pytest

from flopsfit_ds.fit import fit_scaling_law, load_points
from flopsfit_ds.fit.forecast.isoflop import isoflop_minima
from flopsfit_ds.fit.points.points import Point
from helpers.fit import figure_points
from helpers.fit.figure_points import BUDGETS, NUM_OUTLIERS, NUM_POINTS, write_figure_points


@pytest.fixture(scope="module")
def everyone(tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    return load_points(write_figure_points(tmp_path_factory.mktemp("figure") / "points.csv")).points


@pytest.fixture(scope="module")
def points(everyone: list[Point]) -> list[Point]:
    assert len(everyone) == NUM_POINTS + NUM_OUTLIERS
    return sorted(everyone, key=lambda p: p.loss)[:-NUM_OUTLIERS]


def test_the_law_is_found_within_errors_of_the_published_size(points: list[Point]) -> None:
    fit = fit_scaling_law(points, bootstrap_samples=400, other_forms=False, diagnostics=False)
    assert fit.certificate.best_share >= 0.5
    for name, found, error in (
        ("alpha", fit.law.alpha, 0.0154),
        ("beta", fit.law.beta, 0.0206),
        ("loss_floor", fit.law.loss_floor, 0.0257),
    ):
        truth = figure_points.FLOOR if name == "loss_floor" else getattr(figure_points, name.upper())
        assert abs(found - truth) < 2.5 * fit.standard_errors[name], name
        assert error / 2 < fit.standard_errors[name] < 2 * error, name
    assert fit.law.a == pytest.approx(0.3658 / (0.3478 + 0.3658), abs=0.03)


def test_the_five_highest_losses_pull_a_fit_and_it_says_so(everyone: list[Point], points: list[Point]) -> None:
    codes = {w.code for w in fit_scaling_law(everyone, bootstrap_samples=200).warnings}
    assert "influential_point" in codes
    assert "influential_point" not in {w.code for w in fit_scaling_law(points, bootstrap_samples=200).warnings}


def test_the_budgets_of_the_figure_are_found(points: list[Point]) -> None:
    found = isoflop_minima(points)
    budgets = [b.compute_flops for b in found.budgets]
    for nominal in BUDGETS:
        assert min(abs(b / nominal - 1) for b in budgets) < 0.12
    assert found.size_law is not None
    assert 0.45 < found.size_law.exponent < 0.58

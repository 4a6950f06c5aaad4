"""The public points of Hoffmann et al. 2022, figure 4, as recovered by Besiroglu et al. 2024."""

from __future__ import annotations

import pytest

from flopsfit_ds.fit import fit_scaling_law, load_points
from flopsfit_ds.fit.points.points import Point
from helpers.fit.planted_sweeps import PUBLIC_DATA


@pytest.fixture(scope="module")
def points() -> list[Point]:
    table = load_points(PUBLIC_DATA)
    assert len(table.points) == 245
    return sorted(table.points, key=lambda p: p.loss)[:-5]


def test_the_optimum_and_its_errors(points: list[Point]) -> None:
    fit = fit_scaling_law(points, bootstrap_samples=4000, other_forms=False, diagnostics=False)
    assert fit.objective <= 0.0010182741
    assert fit.law.alpha == pytest.approx(0.347, abs=5e-4)
    assert fit.law.beta == pytest.approx(0.367, abs=5e-4)
    assert fit.law.loss_floor == pytest.approx(1.817, abs=5e-4)
    assert fit.law.a == pytest.approx(0.514, abs=5e-4)
    assert fit.certificate.best_share >= 0.5
    for name, error in (("alpha", 0.0154), ("beta", 0.0206), ("loss_floor", 0.0257)):
        assert fit.standard_errors[name] == pytest.approx(error, rel=0.08), name


def test_the_five_highest_losses_pull_a_fit_and_it_says_so(points: list[Point]) -> None:
    everyone = load_points(PUBLIC_DATA).points
    codes = {w.code for w in fit_scaling_law(everyone, bootstrap_samples=200).warnings}
    assert "influential_point" in codes
    assert "influential_point" not in {w.code for w in fit_scaling_law(points, bootstrap_samples=200).warnings}

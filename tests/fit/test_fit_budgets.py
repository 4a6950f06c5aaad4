"""Budgets of tables that do not name them: near ones are told apart or said, and exact laws give no false alarm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.cli.main import run
from flopsfit_ds.fit import Point, fit_scaling_law, isoflop_minima, load_points
from flopsfit_ds.fit.checks.design import unlike_batches
from flopsfit_ds.fit.forecast.isoflop import budget_groups
from helpers.fit.planted_sweeps import write_csv

NEAR = (1e19, 1.5e19, 2e19, 2.4e19)


def exact(budgets: tuple[float, ...] = NEAR, sizes: int = 7, scatter: float = 0.005) -> list[Point]:
    """Points of one law on a grid that moves as C^0.5; their FLOPs scatter as where tokens are whole steps."""
    rng = np.random.default_rng(0)
    points: list[Point] = []
    for budget in budgets:
        for size in np.geomspace(0.4, 2.5, sizes) * 2.9e8 * (budget / 1e19) ** 0.5:
            flops = budget * (1.0 + scatter * rng.uniform(-1, 1))
            tokens = flops / 6 / size
            loss = 1.69 + 406.4 / size**0.34 + 410.7 / tokens**0.28
            points.append(Point(float(size), float(tokens), float(loss), flops))
    return points


def test_near_budgets_stay_apart_and_no_approach_disagrees_on_an_exact_law() -> None:
    fit = fit_scaling_law(exact(), bootstrap_samples=100)
    assert [b.num_points for b in fit.isoflop.budgets] == [7] * 4
    assert [b.compute_flops for b in fit.isoflop.budgets] == pytest.approx(NEAR, rel=0.01)
    assert not {"approaches_disagree", "wide_budget"} & {w.code for w in fit.warnings}
    assert fit.isoflop.size_law is not None
    assert fit.isoflop.size_law.exponent == pytest.approx(fit.law.a, abs=0.01)


def test_three_budgets_within_a_quarter_stay_apart() -> None:
    assert [len(g) for g in budget_groups(exact((1e19, 1.1e19, 1.2e19, 5e19), scatter=0.002))] == [7] * 4


def test_one_budget_is_not_cut() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        one = exact((1e19,), sizes=12)
        assert len(budget_groups([replace(p, flops=1e19 * rng.uniform(0.9, 1.1)) for p in one])) == 1
    by_size = [replace(p, flops=1e19 if k < 4 else 1.15e19) for k, p in enumerate(exact((1e19,), sizes=8))]
    assert len(budget_groups(by_size)) == 1  # FLOPs that depend on the size
    few = [replace(p, flops=(1 + 0.15 * (k % 2)) * 1e19) for k, p in enumerate(exact((1e19,), sizes=4))]
    assert len(budget_groups(few)) == 1  # too few sizes for two parabolas


def test_a_budget_of_unlike_flops_is_told_unless_it_is_named() -> None:
    points = exact((1e18, 1e19, 1e20), scatter=0.1)
    (told,) = (w.message for w in fit_scaling_law(points, bootstrap_samples=0).warnings if w.code == "wide_budget")
    assert told.count("7 of") == 3
    assert "compute_budget_flops" in told
    named = [replace(p, compute_budget_flops=10.0 ** round(np.log10(p.compute_flops))) for p in points]
    assert "wide_budget" not in {w.code for w in fit_scaling_law(named, bootstrap_samples=0).warnings}


def test_a_budget_of_unlike_flops_is_told_where_no_law_can_be_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_csv(tmp_path / "runs.csv", exact((1e19,), sizes=5, scatter=0.1))
    assert run(["fit", str(path)]) == 2
    out = capsys.readouterr().out
    assert "isoFLOP minima" in out
    assert "warning wide_budget: " in out


@pytest.mark.parametrize(
    "header", ["N,D,loss,batch_size", "model/n_params,data/train_tokens,eval/loss,config/global_batch_tokens"]
)
def test_budgets_whose_runs_had_unlike_batches_are_named(tmp_path: Path, header: str) -> None:
    """A table that someone else trained: one of three budgets goes from 64 to 1,024."""
    path = tmp_path / "runs.csv"
    rows = [header]
    for number, point in enumerate(exact((1e18, 1e19, 1e20))):
        batch = (64, 1024, 256)[number % 3] if number // 7 == 1 else "8 x 32" if number == 3 else 256
        rows.append(f"{point.num_params},{point.num_tokens},{point.loss},{batch}")
    path.write_text("\n".join(rows))
    points = load_points(path).points
    assert len(points) == 21  # a batch that is no number leaves no run out
    (told,) = (w.message for w in fit_scaling_law(points, bootstrap_samples=0).warnings if w.code == "unlike_batches")
    assert told.startswith("batches differ within a budget: 1e19 FLOPs from 64 to 1,024: ")
    alike = [replace(point, global_batch=None if point.global_batch is None else 256) for point in points]
    assert "unlike_batches" not in {w.code for w in fit_scaling_law(alike, bootstrap_samples=0).warnings}


def test_batches_that_were_tuned_at_each_size_are_none_of_these() -> None:
    points = [
        replace(point, loss=point.loss * (1 + 0.01 * abs(power - best)), global_batch=2.0**power)
        for best, point in enumerate(exact((1e19,), sizes=7), start=4)
        for power in range(best - 1, best + 2)
    ]
    assert unlike_batches(points) == []
    (found,) = unlike_batches([point for number, point in enumerate(points) if number % 3 == 1])
    assert (found.smallest, found.largest) == (2.0**4, 2.0**10)


def test_the_envelope_of_a_grid_is_known_to_its_steps() -> None:
    """The best of a grid that moves as C^0.5 moves so too, whatever the law: steps bound what it can tell."""
    coarse, fine = (isoflop_minima(exact(NEAR, sizes)).envelope_law for sizes in (7, 61))
    assert coarse is not None
    assert fine is not None
    assert coarse.exponent == pytest.approx(0.5, abs=0.01)
    law = 0.28 / (0.34 + 0.28)
    assert abs(coarse.exponent - law) < 2 * (coarse.standard_error or 0.0) < 0.5
    assert 0.0 < (fine.standard_error or 0.0) < (coarse.standard_error or 0.0) / 2

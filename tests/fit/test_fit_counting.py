"""Mistakes of counting, unit and tuning are named, and a clean table is told none of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit import Point, fit_scaling_law, load_points
from flopsfit_ds.fit.points.columns import read_number
from helpers.fit.planted_sweeps import sweep

NAMED = {"unusual_flops", "embeddings_in_n", "unlikely_units", "small_runs_high", "learning_rate_edge"}


def told(points: list[Point], **options) -> dict[str, str]:
    fit = fit_scaling_law(points, bootstrap_samples=0, other_forms=False, **options)
    return {w.code: w.message for w in fit.warnings}


def test_a_clean_table_is_told_none() -> None:
    for seed in range(6):
        assert not NAMED & set(told(sweep(seed)[1]))


@pytest.mark.parametrize("ratio", [1, 2, 3, 8])
def test_flops_of_another_convention_are_named(ratio: int) -> None:
    points = [replace(p, flops=ratio * p.num_params * p.num_tokens, compute_budget_flops=None) for p in sweep()[1]]
    assert f"C is {ratio} N D throughout" in told(points, diagnostics=False)["unusual_flops"]


def test_embeddings_in_n_and_not_in_c() -> None:
    def embedded(p: Point, vocabulary: float = 50_000) -> Point:
        width = (p.num_params / 1500) ** 0.5  # layers grow with width: N ~ 12 layers width^2
        return replace(p, num_params=p.num_params + vocabulary * width, flops=6 * p.num_params * p.num_tokens)

    found = told([embedded(p) for p in sweep()[1]], diagnostics=False)
    assert "as where N counts embeddings and C does not" in found["embeddings_in_n"]
    head = [replace(p, flops=6 * (p.num_params + 5e7) * p.num_tokens, compute_budget_flops=None) for p in sweep()[1]]
    assert "embeddings_in_n" not in told(head, diagnostics=False)


def test_parameters_in_millions_without_saying_so() -> None:
    points = [
        replace(p, num_params=p.num_params / 1e6, num_tokens=p.num_tokens / 1e9, compute_budget_flops=None)
        for p in sweep()[1]
    ]
    assert "in millions or billions" in told(points, diagnostics=False)["unlikely_units"]


def test_negated_losses_are_named() -> None:
    with pytest.raises(FitError, match="losses are negative"):
        fit_scaling_law([replace(p, loss=-p.loss) for p in sweep()[1]])


def test_numbers_with_commas_are_read(tmp_path: Path) -> None:
    assert read_number("35,000,000") == 35e6
    assert read_number("1,234.5") == 1234.5
    for text in ("1,5", "12,34", "1,2345"):
        with pytest.raises(ValueError, match="1"):
            read_number(text)
    path = tmp_path / "runs.csv"
    path.write_text('N,D,loss\n"35,000,000","700,000,000",3.5\n')
    assert load_points(path).points[0].num_params == 35e6


def test_small_runs_above_the_law_of_the_others_are_named() -> None:
    for seed in range(4):
        _, points = sweep(seed, noise=0.001)
        sizes = sorted({p.num_params for p in points})
        cut = sizes[len(sizes) // 4]
        mistuned = [replace(p, loss=p.loss * 1.03) if p.num_params <= cut else p for p in points]
        message = told(mistuned)["small_runs_high"]
        assert "as where their learning rate is not at its best" in message


def test_sizes_whose_best_learning_rate_is_the_last_tried_are_named() -> None:
    _, points = sweep(noise=0.0)
    rows = []
    for p in points:
        best = 3e-3 if p.num_params > 1e8 else 2e-2  # beyond what was tried for the small ones
        for rate in (1e-3, 3e-3, 9e-3):
            rows.append(replace(p, learning_rate=rate, loss=p.loss * (1 + 0.01 * math.log(rate / best) ** 2)))
    message = told(rows)["learning_rate_edge"]
    assert "0.009 is the largest" in message


def test_one_run_2_percent_off_among_25_is_named() -> None:
    _, points = sweep(noise=0.001, sizes_per_budget=5)
    for bad in (4, 12, 20):
        rows = [replace(p, row=k) for k, p in enumerate(points, start=1)]
        rows[bad] = replace(rows[bad], loss=1.02 * rows[bad].loss)
        message = told(rows)["influential_point"]
        assert message.startswith(f"row {bad + 1}: its loss is +")


@pytest.mark.slow
def test_no_point_of_a_clean_sweep_is_called_influential() -> None:
    false = sum("influential_point" in told(sweep(seed, noise=0.002)[1]) for seed in range(20))
    assert false <= 2


def test_small_runs_below_the_law_of_the_others_are_not_called_mistuned() -> None:
    points = [p for p in sweep(noise=0.001)[1] if p.num_params > 0]
    low = [
        replace(p, loss=0.99 * p.loss) if p.num_params < np.median([q.num_params for q in points]) else p
        for p in points
    ]
    assert "small_runs_high" not in told(low)

"""The one-sided loss: small runs that are under-tuned do not bend the law, and a clean table is fitted as well."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from flopsfit_ds.fit import Point, fit_scaling_law
from helpers.fit.planted_sweeps import sweep

SEEDS = range(6)


def under_tuned(points: list[Point], seed: int) -> list[Point]:
    """The smaller half too high, the more the smaller and each by its own luck; every third is tuned well enough."""
    rng = np.random.default_rng(seed)
    middle = float(np.median([math.log(p.num_params) for p in points]))
    return [
        replace(
            p,
            loss=p.loss
            * math.exp(0.02 * max(0.0, middle - math.log(p.num_params)) * max(0.0, float(rng.uniform(-0.5, 1.0)))),
        )
        for p in points
    ]


def errors_of_alpha(loss: str, spoilt: bool) -> list[float]:
    errors = []
    for seed in SEEDS:
        planted, points = sweep(seed, sizes_per_budget=9, noise=0.002)
        given = under_tuned(points, 100 + seed) if spoilt else points
        fit = fit_scaling_law(given, loss=loss, bootstrap_samples=0, other_forms=False, diagnostics=False)
        errors.append(abs(fit.law.alpha - float(planted.natural()["alpha"])))
    return errors


def test_under_tuned_small_runs_bend_the_exponent_less_than_under_a_symmetric_loss() -> None:
    symmetric, lower = errors_of_alpha("huber_log", True), errors_of_alpha("lower_huber_log", True)
    assert np.mean(lower) < 0.5 * np.mean(symmetric)
    assert sum(mine < other for mine, other in zip(lower, symmetric, strict=True)) >= 4


def test_on_a_clean_table_it_loses_less_than_the_symmetric_loss_on_a_spoilt_one_and_lies_below_the_mean() -> None:
    assert np.mean(errors_of_alpha("lower_huber_log", False)) < 0.5 * np.mean(errors_of_alpha("huber_log", True))
    _, points = sweep(1, sizes_per_budget=9, noise=0.002)
    fit = fit_scaling_law(points, loss="lower_huber_log", bootstrap_samples=0, other_forms=False, diagnostics=False)
    assert float((fit.residuals < 0).mean()) == pytest.approx(0.75, abs=0.1)
    assert fit.audit.huber_delta == 1e-3

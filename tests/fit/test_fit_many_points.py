"""Many points are searched by a sample: ends are those of the whole search, the spread that of full resamples."""

from __future__ import annotations

import numpy as np

from flopsfit_ds.fit.laws.registry import get_law
from flopsfit_ds.fit.losses import make_loss
from flopsfit_ds.fit.points.points import PointArrays
from flopsfit_ds.fit.scaling import make_problem
from flopsfit_ds.fit.solve.bootstrap import MANY_POINTS, bootstrap_fits, one_step, resample_weights
from flopsfit_ds.fit.solve.certificate import certified_fit
from flopsfit_ds.fit.solve.solver import local_model, minimise, objective_of
from flopsfit_ds.fit.solve.starts import grid_starts
from flopsfit_ds.fit.solve.thinned import MOST_POINTS, best_end, best_ends, minimise_from_afar, sample_points
from helpers.fit.planted_sweeps import sweep


def many(form="chinchilla", count=300, noise=0.005):
    planted, points = sweep(form=form, sizes_per_budget=count, noise=noise)
    arrays = PointArrays.of(points)
    assert len(points) > MOST_POINTS
    return planted, make_problem(get_law(form), make_loss("huber_log", 1e-3), arrays)


def test_ends_over_many_points_are_those_of_the_whole_search():
    for form in ("chinchilla", "interaction"):
        _, problem = many(form)
        starts = grid_starts(problem)
        whole, sampled = minimise(problem, starts), minimise_from_afar(problem, starts)
        assert sampled.converged.any()
        assert sampled.moved.all()
        assert sampled.objective.min() <= whole.objective.min() * (1 + 1e-9)
        np.testing.assert_allclose(
            sampled.theta[sampled.objective.argmin()], whole.theta[whole.objective.argmin()], rtol=1e-4
        )


def test_a_sample_stands_for_every_stratum_with_its_weight():
    strata = [np.arange(10), np.arange(10, 10), np.arange(10, 5000)]
    sample = sample_points(strata, 100)
    assert len(sample.index) == 60
    assert len(set(sample.index.tolist())) == 60
    assert sample.factor[sample.index < 10].sum() == 10
    assert sample.factor[sample.index >= 10].sum() == 4990
    np.testing.assert_array_equal(sample.index, sample_points(strata, 100).index)


def test_one_step_spreads_as_full_resamples_do():
    _, problem = many(count=MANY_POINTS // 5)
    best = certified_fit(problem)
    weights = resample_weights(np.arange(len(problem.log_loss)), 100, 5, np.random.default_rng(0))
    resampled = problem._replace(weights=weights)
    stepped = one_step(resampled, best.theta, 20)
    assert stepped is not None
    full = minimise(resampled, np.repeat(best.theta[None], 100, axis=0), warm=True).theta
    ratio = stepped.std(axis=0) / full.std(axis=0)
    assert (np.abs(np.log(ratio)) < 0.12).all(), ratio


def test_where_one_step_is_not_enough_resamples_are_fitted_in_full():
    _, problem = many(count=MANY_POINTS // 5)
    best = certified_fit(problem)
    off = best.theta + np.array([0.0, 0.0, 0.0, 0.05, 0.0])
    weights = resample_weights(np.arange(len(problem.log_loss)), 40, 5, np.random.default_rng(0))
    assert one_step(problem._replace(weights=weights), off, 20) is None
    draws = bootstrap_fits(problem, off, best.starts, np.arange(len(weights[0])), "points", 40, 0)
    assert np.abs(draws.theta.mean(axis=0)[3] - best.theta[3]) < 3 * draws.theta.std(axis=0)[3]


def test_the_sums_over_many_points_are_those_of_their_parts():
    _, problem = many(count=MANY_POINTS // 2)
    theta = grid_starts(problem)[:2]
    half = len(problem.log_loss) // 2
    parts = [problem.points(slice(0, half)), problem.points(slice(half, None))]
    whole = local_model(problem, theta, np.arange(2))
    for name in ("objective", "gradient", "hessian", "majorant"):
        summed = sum(getattr(local_model(part, theta, np.arange(2)), name) for part in parts)
        np.testing.assert_allclose(getattr(whole, name), summed, rtol=1e-9, atol=1e-9)


def test_the_lowest_end_is_found_though_most_starts_are_given_up():
    for form in ("kaplan", "interaction", "overtraining"):
        _, points = sweep(form=form, sizes_per_budget=8, noise=0.005)
        problem = make_problem(get_law(form), make_loss("huber_log", 1e-3), PointArrays.of(points))
        starts = grid_starts(problem)[:6]
        weights = np.stack([np.ones(len(points)), np.linspace(0.1, 2.0, len(points))])
        ends = best_ends(problem, starts, weights)
        for row, end in zip(weights, ends, strict=True):
            every = minimise(problem._replace(weights=np.tile(row, (6, 1))), starts, max_iterations=2000)
            found = objective_of(problem._replace(weights=row[None]), end[None])[0]
            assert found <= every.objective.min() * (1 + 1e-4), form
        assert np.allclose(best_end(problem, starts), best_ends(problem, starts, None)[0])

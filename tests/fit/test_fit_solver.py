"""The laws' derivatives, and the solver against independent methods."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.laws.base import Law
from flopsfit_ds.fit.laws.registry import SURFACES, get_law
from flopsfit_ds.fit.losses import LOSS_NAMES, make_loss
from flopsfit_ds.fit.planted import SIX_ND, random_law
from flopsfit_ds.fit.points.points import PointArrays
from flopsfit_ds.fit.scaling import make_problem
from flopsfit_ds.fit.solve.bootstrap import bootstrap_fits
from flopsfit_ds.fit.solve.certificate import certified_fit
from flopsfit_ds.fit.solve.solver import Problem, local_model, objective_of, solve_symmetric
from helpers.fit.planted_sweeps import sweep


def problem_of(form: str, loss: str = "huber_log", seed: int = 3, **design: object) -> Problem:
    _, points = sweep(seed, form, **design)
    return make_problem(get_law(form), make_loss(loss, 1e-3), PointArrays.of(points))


@pytest.mark.parametrize("form", SURFACES)
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_gradient_and_hessian_agree_with_differences(form: str, loss: str) -> None:
    problem = problem_of(form, loss)._replace(loss=make_loss(loss, 0.02))
    theta = certified_fit(problem).theta * 1.0041 + 1.1e-3  # off the optimum, away from the kinks of a small delta
    local = local_model(problem, theta[None], np.zeros(1, dtype=int))
    step = 2e-7
    size = len(theta)
    moved = theta + step * np.concatenate([np.eye(size), -np.eye(size)])
    value = objective_of(problem, moved)
    slope = (value[:size] - value[size:]) / (2 * step)
    np.testing.assert_allclose(local.gradient[0], slope, rtol=2e-4, atol=2e-7 * np.abs(slope).max())
    gradients = local_model(problem, moved, np.zeros(2 * size, dtype=int)).gradient
    curved = (gradients[:size] - gradients[size:]) / (2 * step)
    np.testing.assert_allclose(local.hessian[0], curved, rtol=2e-3, atol=1e-5 * np.abs(curved).max())


@pytest.mark.parametrize("form", SURFACES)
def test_optimum_is_where_a_search_over_sizes_finds_it(form: str) -> None:
    planted = random_law(form, np.random.default_rng(1))
    rule = ComputeRule((np.log(1e8), np.log(2e9), np.log(1e11)), (2.3, 2.0, 1.9), "bent, then constant")
    for compute in (1e14, 1e18, 1e20, 1e23, 1e26):
        log_c = np.log(compute)
        log_n = np.linspace(np.log(1e5), np.log(1e14), 400_001)
        values = planted.law.log_loss(planted.theta[None], planted.inputs.at(log_n, rule.log_tokens(log_c, log_n)))[0]
        found = planted.law.log_optimum(planted.theta[None], np.array([log_c]), rule, planted.inputs)[0, 0]
        assert found == pytest.approx(log_n[values.argmin()], abs=2e-4)


@pytest.mark.parametrize("form", SURFACES)
def test_size_exponent_is_the_slope_of_the_optimum(form: str) -> None:
    planted = random_law(form, np.random.default_rng(2))
    law: Law = planted.law
    log_n = law.log_optimum(planted.theta[None], np.log([1e20, 1e22]), SIX_ND, planted.inputs)[0]
    slope = (log_n[1] - log_n[0]) / np.log(100.0)
    assert law.size_exponent_of_compute(planted.theta[None])[0] == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("form", SURFACES)
def test_noiseless_law_is_recovered(form: str) -> None:
    planted, points = sweep(5, form, noise=0.0, budgets=(1e18, 3e18, 1e19, 3e19, 1e20, 3e20))
    problem = make_problem(get_law(form), make_loss("huber_log", 1e-3), PointArrays.of(points))
    fit = certified_fit(problem)
    found = {k: float(v[0]) for k, v in problem.law.natural(fit.theta[None], problem.inputs).items()}
    truth = planted.natural()
    for name in ("loss_floor", "alpha", "beta"):
        assert found[name] == pytest.approx(truth[name], rel=1e-3), name


@pytest.mark.parametrize("seed", range(4))
def test_no_other_method_finds_a_lower_objective(seed: int) -> None:
    problem = problem_of("chinchilla", seed=seed, noise=0.005)
    fit = certified_fit(problem)
    rng = np.random.default_rng(seed)
    for _ in range(6):
        start = fit.theta * (1 + 0.1 * rng.standard_normal(5))
        other = minimize(
            lambda t: float(objective_of(problem, np.clip(t, problem.lower, problem.upper)[None])[0]),
            start,
            method="Nelder-Mead",
            options={"xatol": 1e-12, "fatol": 1e-18, "maxiter": 8000, "maxfev": 8000},
        )
        assert fit.objective <= other.fun * (1 + 1e-8)
    assert fit.certificate.starts >= 16
    assert fit.certificate.best_share > 0.5
    assert fit.certificate.gradient_norm < 1e-3


def test_resampled_fits_are_the_fits_of_the_resampled_points() -> None:
    _, points = sweep(7, noise=0.004)
    problem = make_problem(get_law("chinchilla"), make_loss("huber_log", 1e-3), PointArrays.of(points))
    fit = certified_fit(problem)
    draws = bootstrap_fits(problem, fit.theta, fit.starts, np.arange(len(points)), "points", 200, 11)
    rng = np.random.default_rng(11)
    weights = rng.multinomial(len(points), np.full(len(points), 1 / len(points)), size=200)
    assert draws.num_failed == 0
    for row in (0, 63, 199):
        chosen = np.repeat(np.arange(len(points)), weights[row])
        alone = problem._replace(inputs=problem.inputs.rows(chosen), log_loss=problem.log_loss[chosen])
        again = certified_fit(alone)
        mine = float(objective_of(alone, draws.theta[row][None])[0])
        assert mine == pytest.approx(again.objective, rel=1e-6)


def test_matrix_that_is_not_positive_definite_is_told_apart() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((4, 5, 5))
    good = base @ base.transpose(0, 2, 1) + 0.1 * np.eye(5)
    bad = good.copy()
    bad[:, 2, 2] -= 100.0
    right = rng.standard_normal((4, 5))
    solution, positive = solve_symmetric(good, right)
    np.testing.assert_allclose(np.einsum("bij,bj->bi", good, solution), right, atol=1e-9)
    assert positive.all()
    assert not solve_symmetric(bad, right)[1].any()


def test_losses_that_do_not_vary_give_an_error_not_a_number() -> None:
    _, points = sweep(3)
    arrays = PointArrays.of(points)
    flat = make_problem(get_law("chinchilla"), make_loss("huber_log", 1e-3), arrays)
    flat = flat._replace(log_loss=np.full_like(flat.log_loss, np.nan))
    with pytest.raises(FitError):
        certified_fit(flat)


@pytest.mark.parametrize("form", ["kaplan", "interaction"])
def test_a_fit_file_keeps_the_coordinates_of_its_version(form: str) -> None:
    problem = problem_of(form)
    theta = certified_fit(problem).theta
    law, inputs = problem.law, problem.inputs
    *floor, log_p, log_q, rho, beta = law.stored(theta)
    mixed = (np.exp(log_p - rho * inputs.n) + np.exp(log_q - inputs.d)) ** beta  # as the first version defined them
    np.testing.assert_allclose(np.exp(law.log_loss(theta[None], inputs)[0]), sum(floor) + mixed, rtol=1e-12)
    np.testing.assert_allclose(law.from_stored(law.stored(theta)), theta, rtol=1e-12)

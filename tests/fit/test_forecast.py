"""Predictions: the centre lies inside, the width is learnt from the table's own past, and holds on known laws."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit import Point, fit_scaling_law
from flopsfit_ds.fit.forecast.prediction import Prediction, PredictionModel
from flopsfit_ds.fit.forecast.repeats import MemberDraws
from flopsfit_ds.fit.solve import thinned
from helpers.fit.planted_sweeps import sweep


def grid(loss, budgets=(1e18, 3e18, 1e19, 3e19, 1e20), sizes=5, noise=0.003, seed=0, span=16.0) -> list[Point]:
    """IsoFLOP points of a law `loss(N, D)`."""
    rng = np.random.default_rng(seed)
    points = []
    for budget in budgets:
        for offset in np.linspace(-0.5, 0.5, sizes):
            n = math.sqrt(budget / 120) * span**offset
            d = budget / 6 / n
            points.append(Point(num_params=n, num_tokens=d, loss=loss(n, d) * math.exp(noise * rng.standard_normal())))
    return points


def chinchilla(n: float, d: float) -> float:
    return 1.7 + 400 / n**0.34 + 410 / d**0.28


def fit(points, **options):
    return fit_scaling_law(points, bootstrap_samples=0, diagnostics=False, **options)


@pytest.fixture(scope="module")
def model() -> PredictionModel:
    """Of a law that the default form can follow."""
    return fit(grid(chinchilla)).prediction


def log_width(guess: Prediction) -> float:
    return math.log(guess.confidence_interval.high / guess.confidence_interval.low)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 0.001, 0.01, 0.05]),
    budgets=st.integers(2, 5),
    law=st.sampled_from(["chinchilla", "kaplan", "chinchilla-tied"]),
    log_n=st.floats(5, 40),
    log_d=st.floats(10, 45),
    level=st.floats(0.01, 0.999),
)
def test_no_printed_point_lies_outside_its_interval(seed, noise, budgets, law, log_n, log_d, level):
    points = grid(chinchilla, budgets=(1e18, 3e18, 1e19, 3e19, 1e20)[:budgets], noise=noise, seed=seed)
    try:
        found = fit(points, law=law)
    except FitError:
        return
    for guess in (
        found.prediction.predict(num_params=math.exp(log_n), num_tokens=math.exp(log_d), level=level),
        found.prediction.predict(compute=1e19, num_params=1e8, level=level),
    ):
        assert guess.interval.low <= guess.confidence_interval.low <= guess.loss
        assert guess.loss <= guess.confidence_interval.high <= guess.interval.high


def test_the_ensemble_is_the_headline_and_the_asked_form_stands_beside_it():
    found = fit(grid(chinchilla), law="kaplan")  # refuted: these losses have a floor
    guess = found.predict(1e22)
    truth = chinchilla(guess.num_params, guess.num_tokens)
    assert guess.law == "kaplan"
    assert guess.law_weight < 0.2
    assert abs(math.log(guess.loss / truth)) < 0.5 * abs(math.log(guess.law_loss / truth))


def test_a_form_that_is_refuted_has_no_weight_at_all():
    """A form without a floor is off by percents where runs scatter by a millionth: a little would be too much."""
    members = fit(grid(chinchilla, noise=1e-6)).prediction.members
    assert sum(member.weight for member in members) == pytest.approx(1)
    assert {member.weight for member in members if member.law == "kaplan"} == {0.0}


def test_drift_enters_by_the_e_folds_beyond_the_data_and_nowhere_else(model):
    straight, bent = replace(model, drift=0.0), replace(model, drift=-0.03)
    for times in (10.0, 1.0, 0.1):
        compute = times * model.largest_compute
        moved = math.log(bent.predict(compute).loss / straight.predict(compute).loss)
        assert moved == pytest.approx(-0.03 * max(0.0, math.log(times)), abs=1e-9)


def test_distance_is_counted_beyond_the_compute_and_beyond_the_tokens_per_parameter(model):
    """With a growth beside which no spread counts, an interval is as wide as its distance."""
    wild, compute = replace(model, growth=0.5), 10 * model.largest_compute
    for ratio in (model.tokens_per_parameter[1] * math.exp(2), model.tokens_per_parameter[0] / math.exp(2)):
        size = math.sqrt(compute / 6 / ratio)
        off = wild.predict(num_params=size, num_tokens=compute / 6 / size)
        share = log_width(off) / log_width(wild.predict(compute))
        assert share == pytest.approx((math.log(10) + 2) / math.log(10), rel=0.05)


def test_intervals_grow_with_the_distance_and_with_what_past_forecasts_were_off_by(model):
    def restless(n: float, d: float) -> float:
        """Each budget is off by 2%, one up and the next down: no form can foresee it."""
        return chinchilla(n, d) * math.exp(0.02 * math.cos(math.pi * math.log(6 * n * d / 1e18) / math.log(10**0.5)))

    straight, curved = model, fit(grid(restless)).prediction
    assert curved.growth > 1.5 * straight.growth
    assert curved.growth > 0.8 * curved.noise, "more than the scatter of its runs says by itself"

    def width(model: PredictionModel, compute: float) -> float:
        interval = model.predict(compute).interval
        return math.log(interval.high / interval.low)

    assert width(straight, 1e20) < width(straight, 1e21) < width(straight, 1e22)
    assert width(curved, 1e22) > 1.3 * width(straight, 1e22)


def drifting(n: float, d: float) -> float:
    """Below every law by 1% an e-fold, as where larger runs are better tuned."""
    return chinchilla(n, d) * math.exp(-0.002 * math.log(6 * n * d / 1e18) ** 2)


def test_a_member_that_leans_to_the_newest_budgets_is_nearer_to_them():
    found, edge = fit(grid(drifting, noise=0.0)).prediction, 1e20
    members = {member.recency: member for member in found.members if member.law == "chinchilla"}
    even, recent = members[min(members)], members[max(members)]
    assert even.recency < recent.recency

    def error(member: MemberDraws) -> float:
        """At the last budget, whichever the size."""
        alone = replace(found, members=(replace(member, weight=1.0),), drift=0.0)
        sizes = (5e8, 1e9, 2e9)
        ratios = [alone.predict(edge, num_params=size).loss / drifting(size, edge / 6 / size) for size in sizes]
        return abs(float(np.mean(np.log(ratios))))

    assert error(recent) < error(even)


def test_of_all_starts_the_end_with_the_least_error_is_taken(monkeypatch):
    ends, errors = np.arange(6.0)[:, None], np.array([3.0, 1.0, 2.0, 5.0, 6.0, 4.0])
    done = SimpleNamespace(objective=errors, theta=ends, converged=np.ones(6, dtype=bool))
    monkeypatch.setattr(thinned, "minimise", lambda problem, starts, max_iterations, warm: done)
    problem = SimpleNamespace(_replace=lambda weights: None)
    assert thinned.best_ends(problem, np.zeros((3, 1)), np.ones((2, 1)))[:, 0].tolist() == [1.0, 5.0]  # pyright: ignore


def test_drift_corrects_what_every_origin_was_off_by():
    model = fit(grid(drifting, noise=0.0005)).prediction
    assert model.drift < 0
    guess = model.predict(1e21)
    truth = drifting(guess.num_params, guess.num_tokens)
    undrifted = guess.loss * math.exp(-model.drift * math.log(1e21 / model.largest_compute))
    assert abs(math.log(guess.loss / truth)) < abs(math.log(undrifted / truth))


def test_without_a_back_test_the_interval_says_so_and_is_wider(model):
    two = fit(grid(chinchilla, budgets=(3e19, 1e20), sizes=12))
    assert model.num_looks > 0
    assert two.prediction.num_looks == 0
    guess = two.predict(1e21)
    assert "no back-test" in guess.rests_on
    other = model.predict(num_params=guess.num_params, num_tokens=guess.num_tokens)

    def width(prediction: Prediction) -> float:
        return math.log(prediction.interval.high / prediction.interval.low)

    assert width(guess) > 1.2 * width(other)


def test_a_point_far_from_all_data_in_tokens_per_parameter_has_a_wider_interval(model):
    near = model.predict(num_params=3e8, num_tokens=6e9)
    far = model.predict(num_params=3e6, num_tokens=6e11)
    assert math.log(far.interval.high / far.interval.low) > 2 * math.log(near.interval.high / near.interval.low)


def test_coverage_on_planted_laws_from_both_sides():
    inside = total = 0
    errors, widths = [], []
    for seed in range(6):
        _, points = sweep(seed=seed, form=("chinchilla", "interaction", "chinchilla-tied")[seed % 3])
        top = max(point.compute_flops for point in points)
        lower = [point for point in points if point.compute_flops < 0.3 * top]
        model = fit(lower).prediction
        for point in points:
            if point.compute_flops >= 0.3 * top:
                guess = model.predict(num_params=point.num_params, num_tokens=point.num_tokens)
                inside += guess.interval.contains(point.loss)
                total += 1
                errors.append(abs(math.log(guess.loss / point.loss)))
                widths.append(math.log(guess.interval.high / guess.interval.low))
    assert 0.82 <= inside / total <= 0.99
    assert np.median(widths) < 12 * np.median(errors)  # too wide fails as well


def test_the_model_comes_back_from_json_as_it_was(model):
    again = PredictionModel.from_json_dict(model.to_json_dict())
    assert again.predict(1e22).interval.low == pytest.approx(model.predict(1e22).interval.low, rel=1e-6)
    broken = model.to_json_dict()
    del broken["members"]
    with pytest.raises(FitError, match="write it again"):
        PredictionModel.from_json_dict(broken)

"""Samples of a step: a function of (seed, step) alone; every sample once a pass; ranks divide a batch exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopsfit_ds.train.data.sampling import permute, samples_of_step, share_of_rank
from flopsfit_ds.train.schedule import learning_rate_at

sizes = st.integers(1, 3000)
seeds = st.integers(0, 2**32 - 1)


@given(sizes, seeds)
def test_a_permutation_holds_every_number_once(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(st.integers(1, 2**40), seeds, st.data())
def test_a_permutation_is_evaluated_anywhere_without_the_rest(size, key, data):
    positions = np.asarray(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True)))
    values = permute(positions, size, key)
    assert len(set(values.tolist())) == len(positions)
    assert 0 <= values.min() <= values.max() < size
    assert permute(positions[:1], size, key)[0] == values[0]


@given(st.integers(1, 500), st.integers(1, 64), seeds, st.integers(1, 4))
def test_every_sample_is_seen_once_before_any_is_seen_again(num_samples, batch, seed, num_passes):
    steps = -(-num_passes * num_samples // batch)
    seen = np.concatenate([samples_of_step(step, batch, num_samples, seed) for step in range(steps)])
    for number in range(num_passes):
        assert sorted(seen[number * num_samples : (number + 1) * num_samples].tolist()) == list(range(num_samples))


@given(st.integers(0, 10**9), st.integers(1, 500), seeds)
def test_a_step_far_into_a_run_is_found_without_those_before(step, num_samples, seed):
    first = samples_of_step(step, 8, num_samples, seed)
    assert np.array_equal(first, samples_of_step(step, 8, num_samples, seed))
    assert 0 <= first.min() <= first.max() < num_samples


@given(st.integers(0, 50), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), seeds)
def test_ranks_divide_a_batch_exactly_however_many_there_are(step, world, accumulation, micro_batch, seed):
    batch = world * accumulation * micro_batch
    samples = samples_of_step(step, batch, 1000, seed)
    shares = [share_of_rank(samples, rank, world, accumulation) for rank in range(world)]
    assert all(share.shape == (accumulation, micro_batch) for share in shares)
    assert sorted(np.concatenate([share.ravel() for share in shares]).tolist()) == sorted(samples.tolist())


def test_passes_and_seeds_have_orders_of_their_own():
    orders = {tuple(samples_of_step(step, 100, 100, seed)) for step in range(5) for seed in range(5)}
    assert len(orders) == 25


def test_an_order_is_well_mixed():
    """Neighbours in time are no neighbours in the data, and each part of a pass sees all parts of the data."""
    order = permute(np.arange(10_000), 10_000, 7)
    assert np.abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    for part in np.split(order, 10):
        counts = np.bincount(part // 1000, minlength=10)
        assert counts.min() > 60
        assert counts.max() < 140


class TestSchedule:
    @pytest.fixture
    def recipe(self, corpus_folder):
        from helpers.sweeps import MICRO, plan_of, with_values

        values = with_values(MICRO, training__warmup_fraction=0.1, training__final_learning_rate_fraction=0.2)
        return plan_of(values, corpus_folder).runs[0].recipe

    def test_it_rises_to_the_peak_and_ends_at_the_final_fraction(self, recipe):
        rates = [learning_rate_at(step, 100, recipe) for step in range(100)]
        assert recipe.warmup_steps == 10
        assert rates[:10] == pytest.approx([1e-2 * (step + 1) / 10 for step in range(10)])
        assert max(rates) == rates[9] == pytest.approx(1e-2)
        assert rates[-1] == pytest.approx(2e-3)
        assert rates[9:] == sorted(rates[9:], reverse=True)
        middle = rates[9 + 45]
        assert middle == pytest.approx((1e-2 + 2e-3) / 2, rel=0.02)

    @pytest.mark.parametrize("fraction", [0.0, 1.0])
    def test_no_warm_up_and_nothing_but_warm_up(self, corpus_folder, fraction):
        from helpers.sweeps import MICRO, plan_of, with_values

        recipe = plan_of(with_values(MICRO, training__warmup_fraction=fraction), corpus_folder).runs[0].recipe
        rates = [learning_rate_at(step, 100, recipe) for step in range(100)]
        assert all(0 < rate <= 1e-2 for rate in rates)
        assert rates[-1] == pytest.approx(1e-3 if fraction == 0 else 1e-2)

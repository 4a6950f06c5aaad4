"""Designs: budgets are met, sizes lie around the expected optimum, and what cannot be met is refused with numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.plan.design import TOKEN_TOLERANCE, design_points, plan_batches
from flopsfit_ds.spec import IsoflopDesign
from helpers.sweeps import MICRO, plan_of, with_values

ISOFLOP = with_values(
    MICRO,
    model__width_per_layer=16,
    model__context_length=32,
    design={"method": "isoflop", "compute_budgets": [1e11, 1e12, 1e13], "sizes_per_budget": 5, "size_span": 8},
    training__global_batch_tokens=1024,
)


class TestIsoflop:
    def test_every_point_meets_its_budget_within_half_a_percent(self, corpus_folder):
        plan = plan_of(ISOFLOP, corpus_folder)
        assert len(plan.runs) == 15
        for run in plan.runs:
            assert run.compute_budget_flops in (1e11, 1e12, 1e13)
            assert run.flops == pytest.approx(run.compute_budget_flops, rel=TOKEN_TOLERANCE)
            assert run.num_tokens == run.num_steps * run.global_batch_sequences * run.context_length

    def test_sizes_of_a_budget_differ_lie_around_the_optimum_and_span_what_was_asked(self, corpus_folder):
        for budget in (1e11, 1e12, 1e13):
            runs = [run for run in plan_of(ISOFLOP, corpus_folder).runs if run.compute_budget_flops == budget]
            sizes = [run.num_params_total for run in runs]
            assert len(set(sizes)) == 5
            assert max(sizes) / min(sizes) == pytest.approx(8, rel=0.5)
            ratios = sorted(run.num_tokens / run.num_params_total for run in runs)
            assert ratios[0] < 20 < ratios[-1]
            assert 10 < ratios[2] < 40

    def test_the_expected_optimum_has_the_aimed_tokens_a_parameter(self, corpus_folder):
        values = with_values(ISOFLOP, design__sizes_per_budget=1, design__compute_budgets=[1e13])
        for ratio in (5, 20, 80):
            run = plan_of(with_values(values, design__tokens_per_parameter=ratio), corpus_folder).runs[0]
            assert run.num_tokens / run.num_params_total == pytest.approx(ratio, rel=0.3)

    def test_the_expected_optimum_goes_by_the_models_own_flops(self):
        @dataclass(frozen=True)
        class Costly:
            """24 FLOPs a parameter and token instead of 6."""

            num_params: int

            @property
            def num_params_of_design(self) -> int:
                return self.num_params

            @property
            def flops_per_token(self) -> float:
                return 24.0 * self.num_params

        design = IsoflopDesign(method="isoflop", compute_budgets=(1e18,), sizes_per_budget=1, tokens_per_parameter=20)
        (point,) = design_points(design, lambda size, taken: Costly(round(size)))
        assert point.num_tokens / point.model.num_params == pytest.approx(20, rel=0.01)

    def test_the_exponent_lets_the_ratio_grow_from_the_first_budget_on(self, corpus_folder):
        values = with_values(ISOFLOP, design__sizes_per_budget=1, design__tokens_per_parameter_exponent=0.5)
        ratios = [run.num_tokens / run.num_params_total for run in plan_of(values, corpus_folder).runs]
        for ratio, expected in zip(ratios, (20, 20 * math.sqrt(10), 200), strict=True):
            assert ratio == pytest.approx(expected, rel=0.4)

    def test_more_sizes_than_the_family_has_nearby_is_refused(self, corpus_folder):
        with pytest.raises(PlanError) as caught:
            plan_of(with_values(ISOFLOP, design__sizes_per_budget=200, design__size_span=1.5), corpus_folder)
        assert "200 different sizes within a factor of 1.5" in str(caught.value)
        assert "change design.size_span or design.sizes_per_budget" in str(caught.value)

    def test_a_budget_below_one_batch_is_refused_with_both_numbers(self, corpus_folder):
        with pytest.raises(PlanError, match=r"tokens are less than one global batch of 1\.05M.*lower training\.global"):
            plan_of(with_values(ISOFLOP, training__global_batch_tokens=2**20), corpus_folder)


class TestLadderAndPoints:
    def test_a_ladder_has_every_size_at_every_ratio(self, corpus_folder):
        design = {"method": "ladder", "num_params": [2e4, 1e5], "tokens_per_parameter": [5, 20, 80]}
        plan = plan_of(with_values(ISOFLOP, design=design), corpus_folder)
        assert len(plan.runs) == 6
        assert len({run.num_params_total for run in plan.runs}) == 2
        for run, ratio in zip(plan.runs, (5, 20, 80, 5, 20, 80), strict=True):
            assert run.num_tokens / run.num_params_total == pytest.approx(ratio, rel=TOKEN_TOLERANCE)
            assert run.compute_budget_flops is None

    def test_a_point_is_met_in_tokens_or_in_compute(self, corpus_folder):
        points = [{"num_params": 3e4, "num_tokens": 1e6}, {"num_params": 3e4, "compute": 1e12}]
        first, second = plan_of(with_values(ISOFLOP, design={"method": "points", "points": points}), corpus_folder).runs
        assert first.num_tokens == pytest.approx(1e6, rel=TOKEN_TOLERANCE)
        assert second.flops == pytest.approx(1e12, rel=TOKEN_TOLERANCE)
        assert (first.compute_budget_flops, second.compute_budget_flops) == (None, 1e12)

    def test_points_that_come_to_the_same_training_are_trained_once_and_that_is_said(self, corpus_folder):
        points = [{"num_params": 30000, "num_tokens": 1e6}, {"num_params": 30001, "num_tokens": 1e6}]
        plan = plan_of(with_values(ISOFLOP, design={"method": "points", "points": points}), corpus_folder)
        assert len(plan.runs) == 1
        assert any("more than once" in warning for warning in plan.warnings)


class TestBatches:
    @given(
        st.floats(min_value=3, max_value=13),
        st.integers(min_value=1, max_value=4096),
        st.integers(min_value=1, max_value=2**22),
    )
    def test_tokens_are_met_by_whole_batches_or_refused(self, log_tokens, context, batch_tokens):
        num_tokens = 10**log_tokens
        try:
            (plan,) = plan_batches([num_tokens], context, batch_tokens)
        except PlanError:
            asked = max(1, round(batch_tokens / context))
            # too few for a batch, or too few to round to whole sequences
            assert num_tokens < asked * context or num_tokens < context / TOKEN_TOLERANCE
            return
        assert plan.num_tokens == plan.num_steps * plan.global_batch_sequences * context
        assert abs(plan.num_tokens / num_tokens - 1) <= TOKEN_TOLERANCE
        assert plan.global_batch_sequences <= max(1, round(batch_tokens / context))
        assert plan.made_smaller == (plan.global_batch_sequences < max(1, round(batch_tokens / context)))

    def test_a_batch_that_already_meets_the_budget_is_left_alone(self):
        (plan,) = plan_batches([1e6], 32, 1000)  # 31.25 sequences
        assert (plan.global_batch_sequences, plan.made_smaller) == (31, False)

    def test_a_batch_too_coarse_for_the_budget_is_made_smaller_and_that_is_said(self, corpus_folder):
        values = with_values(MICRO, design__points=[{"num_params": 6e3, "num_tokens": 128 * 3.5}])
        plan = plan_of(values, corpus_folder)
        assert plan.runs[0].global_batch_sequences < 8
        assert any("instead of training.global_batch_tokens" in warning for warning in plan.warnings)

    @given(st.integers(min_value=1, max_value=4096), st.lists(st.floats(min_value=4, max_value=7), min_size=2))
    def test_points_of_one_budget_have_one_batch_and_each_meets_its_tokens(self, asked, log_tokens):
        tokens = [10**value for value in log_tokens]
        try:
            plans = plan_batches(tokens, 16, asked * 16)
        except PlanError:
            return
        assert len({plan.global_batch_sequences for plan in plans}) == 1
        for wanted, plan in zip(tokens, plans, strict=True):
            assert plan.num_tokens == pytest.approx(wanted, rel=TOKEN_TOLERANCE)
        alone = [plan_batches([wanted], 16, asked * 16)[0].global_batch_sequences for wanted in tokens]
        assert plans[0].global_batch_sequences <= min(alone)
        if len(set(alone)) == 1:
            assert plans[0].global_batch_sequences == alone[0]

    def test_a_batch_too_coarse_for_one_point_of_a_budget_is_smaller_for_all_of_them(self, corpus_folder):
        values = with_values(ISOFLOP, training__global_batch_tokens=2**14, design__compute_budgets=[1e11, 1e13])
        plan = plan_of(values, corpus_folder)
        runs = [run for run in plan.runs if run.compute_budget_flops == 1e11]
        alone = [plan_batches([run.num_tokens], 32, 2**14)[0].global_batch_sequences for run in runs]
        assert len(set(alone)) > 1
        assert {run.global_batch_sequences for run in runs} == {min(alone)}
        said = [warning for warning in plan.warnings if "global batch of" in warning]
        assert f"1e11 FLOPs: a global batch of {min(alone)} sequences" in said[0]
        assert sum("1e11 FLOPs" in warning for warning in said) == 1

    def test_tokens_that_no_whole_sequences_meet_are_refused(self):
        with pytest.raises(PlanError, match=r"cannot be met within 0\.5% by whole sequences of 1000 tokens"):
            plan_batches([2500], 1000, 1000)

"""Recipe rules: their published numbers, what follows from them at each point, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.plan.recipe.recipe import Recipe
from flopsfit_ds.plan.recipe.rules import RulePoint, porian_batch, porian_rate, step_law_batch, step_law_rate
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.train.schedule import learning_rate_at
from helpers.sweeps import MICRO, plan_of, spec_of, with_values

ISOFLOP = with_values(
    MICRO,
    design={"method": "isoflop", "compute_budgets": [1e11, 4e11], "sizes_per_budget": 4},
    training__global_batch_tokens=1024,
    training__learning_rates=None,
)
REFERENCE = {"learning_rate": 1e-2, "num_params": 1e5, "num_tokens": 1e6, "global_batch_tokens": 1024}


def ruled(base=ISOFLOP, **training):
    return with_values(base, **{f"training__{name}": value for name, value in training.items()})


def point(num_params=1e9, num_tokens=1e11, matrices=108e6):
    return RulePoint(2 * num_params, num_params, matrices, num_tokens)


class TestPublishedRules:
    def test_step_law_has_the_rate_that_its_equation_has_by_hand(self):
        # log10: 0.25285 - 0.713 * 9 + 0.307 * 11 = -2.78715
        assert step_law_rate().value(point()) == pytest.approx(10**-2.78715, rel=1e-4)
        # log10: -0.23657 + 0.571 * 11 = 6.04443
        assert step_law_batch().value(point()) == pytest.approx(10**6.04443, rel=1e-4)

    def test_porian_has_its_rounded_numbers_at_108_million_parameters_in_matrices(self):
        assert porian_rate().value(point()) == pytest.approx(0.0047)
        assert porian_batch().value(point()) == pytest.approx(160 * 2048)
        assert porian_rate().value(point(matrices=8 * 108e6)) == pytest.approx(0.0047 / 2)
        assert porian_batch().value(point(matrices=8 * 108e6)) == pytest.approx(160 * 2048 * 4)

    def test_a_model_whose_matrices_are_unknown_is_refused_by_a_rule_that_counts_them(self):
        with pytest.raises(PlanError, match="rule porian counts the parameters in matrices"):
            porian_rate().value(point(matrices=None))

    def test_a_point_is_beyond_a_range_on_either_side_and_not_inside(self):
        rule = step_law_rate()
        assert rule.beyond(point(num_params=1e9)) == ""
        assert rule.beyond(point(num_params=21.5e6, num_tokens=1e12)) == "N 10 times below and D 10 times above"


class TestRatesOfAPlan:
    @pytest.mark.parametrize(
        ("rule", "params", "tokens", "batch"),
        [("marin", 0, -0.3, 0.5), ("sqrt-n-d", -0.5, -0.5, 0.5), ("custom", -0.2, 0.1, 0.7)],
    )
    def test_a_rule_with_a_reference_gives_each_point_its_power_law(self, rule, params, tokens, batch, corpus_folder):
        own = {"params_exponent": params, "tokens_exponent": tokens, "batch_exponent": batch}
        section = {"rule": rule, "multiplier": 3, "reference": REFERENCE} | (own if rule == "custom" else {})
        plan = plan_of(ruled(learning_rate=section), corpus_folder)
        for run in plan.runs:
            expected = 3e-2 * (run.num_params_total / 1e5) ** params * (run.num_tokens / 1e6) ** tokens
            expected *= (run.global_batch_sequences * run.context_length / 1024) ** batch
            assert run.recipe.learning_rate == pytest.approx(expected)
        assert not [warning for warning in plan.warnings if "rule" in warning]

    def test_the_reference_itself_has_the_reference_s_rate(self, corpus_folder):
        values = ruled(learning_rate={"rule": "sqrt-n-d", "reference": REFERENCE})
        run = plan_of(values, corpus_folder).runs[0]
        batch = run.global_batch_sequences * run.context_length
        here = {"num_params": run.num_params_total, "num_tokens": run.num_tokens, "global_batch_tokens": batch}
        values = ruled(learning_rate={"rule": "sqrt-n-d", "reference": {"learning_rate": 0.0123, **here}})
        assert plan_of(values, corpus_folder).runs[0].recipe.learning_rate == pytest.approx(0.0123)

    def test_points_beyond_a_published_range_are_named_each(self, corpus_folder):
        plan = plan_of(ruled(learning_rate={"rule": "steplaw", "multiplier": 0.1}), corpus_folder)
        (warning,) = [each for each in plan.warnings if "rule steplaw" in each]
        assert "215M to 1.07B parameters and 4B to 100B tokens" in warning
        assert all(run.label in warning for run in plan.runs)
        assert "times below" in warning

    def test_a_rule_that_gives_the_same_number_gives_the_same_run(self, corpus_folder):
        """A run is what its numbers are, not how they were written."""
        (run,) = plan_of(MICRO, corpus_folder).runs
        reference = {"learning_rate": run.recipe.learning_rate}
        values = ruled(MICRO, learning_rates=None, learning_rate={"rule": "custom", "reference": reference})
        (again,) = plan_of(values, corpus_folder).runs
        assert again.run_id == run.run_id
        values["training"]["learning_rate"]["multiplier"] = 2
        (other,) = plan_of(values, corpus_folder).runs
        assert other.run_id != run.run_id

    def test_a_plan_with_rules_is_read_back_equal(self, corpus_folder):
        rate = {"rule": "sqrt-n-d", "reference": REFERENCE}
        values = ruled(
            learning_rate=rate, schedule="wsd", beta2_half_life_tokens=1e5, warmup_tokens=4096,
            global_batch={"rule": "steplaw"}, global_batch_tokens=None,
        )  # fmt: skip
        plan = plan_of(values, corpus_folder)
        read = SweepPlan.from_json_dict(json.loads(json.dumps(plan.to_json_dict())))
        assert read.spec == plan.spec
        assert read.runs == plan.runs


class TestBatchesByRule:
    def test_one_batch_a_budget_near_the_rule_and_every_budget_met(self, corpus_folder):
        reference = {"global_batch_tokens": 700, "num_tokens": 1e6}
        values = ruled(global_batch={"rule": "d^0.383", "reference": reference}, global_batch_tokens=None)
        plan = plan_of(values, corpus_folder)
        batches = []
        for budget in (1e11, 4e11):
            runs = [run for run in plan.runs if run.compute_budget_flops == budget]
            (sequences,) = {run.global_batch_sequences for run in runs}
            middle = math.exp(sum(math.log(run.num_tokens) for run in runs) / len(runs))
            batches.append(sequences * 16)
            assert batches[-1] == pytest.approx(700 * (middle / 1e6) ** 0.383, rel=0.13)
            assert all(abs(run.flops / budget - 1) < 0.005 for run in runs)
        assert batches[0] < batches[1]

    def test_a_large_batch_is_one_that_eight_gpus_share(self):
        plan = plan_of(
            {
                "name": "large",
                "data": {"source": "tokens", "path": "no.bin", "num_tokens": "900B", "dtype": "uint16"},
                "model": {"vocab_size": 50304, "context_length": 2048, "head_dim": 128},
                "design": {"method": "ladder", "num_params": ["400M", "1B", "3B"], "tokens_per_parameter": [20]},
                "training": {"global_batch": {"rule": "steplaw"}, "learning_rate": {"rule": "steplaw"}},
                "hardware": {"device": "H100-SXM", "gpus_per_node": 8, "host_memory": "1TiB"},
            }
        )
        for run in plan.runs:
            assert run.global_batch_sequences % 8 == 0
            assert run.global_batch_sequences * 2048 == pytest.approx(0.58 * run.num_tokens**0.571, rel=0.13)


class TestByTokens:
    def test_half_lives_are_those_asked_for_whatever_the_batch(self, corpus_folder):
        for batch in (512, 2048):
            values = ruled(
                global_batch_tokens=batch, learning_rate={"rule": "porian"},
                beta2_half_life_tokens=1e5, weight_decay_half_life_tokens=1e6,
            )  # fmt: skip
            for run in plan_of(values, corpus_folder).runs:
                tokens = run.global_batch_sequences * run.context_length
                assert run.recipe.beta2 ** (1e5 / tokens) == pytest.approx(0.5)
                left = 1 - run.recipe.learning_rate * run.recipe.weight_decay
                assert left ** (1e6 / tokens) == pytest.approx(0.5)

    def test_a_warm_up_in_tokens_is_the_same_tokens_for_every_point(self, corpus_folder):
        plan = plan_of(ruled(warmup_tokens=16384), corpus_folder)
        assert {run.recipe.warmup_steps * run.global_batch_sequences * 16 for run in plan.runs} == {16384}
        assert len({run.num_steps for run in plan.runs}) > 4

    def test_epsilon_grows_with_the_root_of_the_steps(self, corpus_folder):
        reference = {"epsilon": 1e-8, "global_batch_tokens": 1000, "num_tokens": 1e6}
        for run in plan_of(ruled(epsilon_reference=reference), corpus_folder).runs:
            assert run.recipe.epsilon == pytest.approx(1e-8 * math.sqrt(run.num_steps / 1000))


def rates(num_steps=100, **changes):
    plain = Recipe(1.0, 10, 0.1, 0.1, 0.9, 0.95, 1e-8, 1.0, "fp32", ())
    recipe = dataclasses.replace(plain, **changes)
    return [learning_rate_at(step, num_steps, recipe) for step in range(num_steps)]


class TestSchedules:
    def test_a_line_to_zero_falls_by_the_same_at_each_step_and_wastes_none(self):
        found = rates(schedule="linear-to-zero", final_learning_rate_fraction=0.0)
        falls = {round(a - b, 9) for a, b in itertools.pairwise(found[10:])}
        assert falls == {round(1 / 90, 9)}
        assert found[-1] == pytest.approx(1 / 90)

    @pytest.mark.parametrize(("shape", "half"), [("linear", 0.55), ("cosine", 0.55), ("sqrt", 0.1 + 0.9 * 0.29289)])
    def test_a_decay_begins_at_the_peak_and_ends_at_the_floor_in_its_shape(self, shape, half):
        found = rates(schedule="wsd", decays=((80, 100),), decay_shape=shape)
        assert found[9:80] == [1.0] * 71
        assert found[89] == pytest.approx(half, abs=1e-4)
        assert found[-1] == pytest.approx(0.1)
        assert all(a > b for a, b in itertools.pairwise(found[79:]))

    def test_a_longer_run_is_the_same_up_to_the_decay_of_a_shorter_one(self, corpus_folder):
        points = [{"num_params": 6e3, "num_tokens": tokens} for tokens in (12800, 25600)]
        values = ruled(MICRO, schedule="wsd", warmup_tokens=1280, decay_fraction=0.25)
        short, long = plan_of(with_values(values, design__points=points), corpus_folder).runs
        assert short.recipe.decays == ((75, 100),)
        assert long.recipe.decays == ((150, 200),)
        first, second = ([learning_rate_at(s, r.num_steps, r.recipe) for s in range(100)] for r in (short, long))
        assert first[:75] == second[:75]
        assert first[75:] != second[75:]

    def test_several_decays_each_end_at_the_floor_and_the_peak_comes_back(self, corpus_folder):
        values = ruled(MICRO, schedule="wsd-s", decays_end_at=[0.25, 0.5, 1], decay_fraction=0.2)
        (run,) = plan_of(values, corpus_folder).runs
        assert run.recipe.decays == ((20, 25), (45, 50), (90, 100))
        found = [learning_rate_at(step, 100, run.recipe) / run.recipe.learning_rate for step in range(100)]
        assert [found[step] for step in (24, 49, 99)] == pytest.approx([0.1] * 3)
        assert [found[step] for step in (25, 44, 50, 89)] == [1.0] * 4


COUNTS = [1600, 3200, 6400, 12800, 25600]
TRUNK = with_values(
    ruled(MICRO, schedule="wsd", warmup_tokens=640, one_trunk=True),
    design__points=[{"num_params": 6e3, "num_tokens": 8 * tokens} for tokens in COUNTS],
)


class TestTrunks:
    def test_five_numbers_of_tokens_cost_little_more_than_the_longest(self, corpus_folder):
        runs = plan_of(TRUNK, corpus_folder).runs
        trunk = runs[-1]
        paid = sum(run.flops * run.paid_share for run in runs)
        assert 1.1 < paid / trunk.flops < 1.35 < 1.9 < sum(run.flops for run in runs) / trunk.flops
        assert trunk.branch is None
        for run in runs[:-1]:
            assert run.branch is not None
            assert run.branch.trunk == trunk.run_id
            assert run.branch.step == run.recipe.decays[0][0]
        assert trunk.keep_steps == tuple(sorted(run.branch.step for run in runs[:-1] if run.branch))

    def test_a_run_is_the_same_with_and_without_a_trunk(self, corpus_folder):
        alone = plan_of(with_values(TRUNK, training__one_trunk=False), corpus_folder)
        assert [run.run_id for run in alone.runs] == ids_of(TRUNK, corpus_folder)
        assert all(run.paid_share == 1 for run in alone.runs)

    def test_sizes_and_seeds_have_a_trunk_each(self, corpus_folder):
        points = [{"num_params": n, "num_tokens": d} for n in (6e3, 2e4) for d in (12800, 25600)]
        values = with_values(TRUNK, design__points=points, training__seeds=[0, 1])
        runs = plan_of(values, corpus_folder).runs
        assert sum(bool(run.keep_steps) for run in runs) == sum(run.branch is not None for run in runs) == 4
        by_id = {run.run_id: run for run in runs}
        for run in runs:
            if run.branch is not None:
                trunk = by_id[run.branch.trunk]
                assert (trunk.model, trunk.seed) == (run.model, run.seed)

    def test_runs_that_differ_from_the_start_share_none_and_that_is_said(self, corpus_folder):
        plan = plan_of(with_values(TRUNK, training__warmup_tokens=None), corpus_folder)
        assert not any(run.branch for run in plan.runs)
        assert any("no two runs share a trunk" in warning for warning in plan.warnings)

    def test_a_run_with_another_batch_shares_none_and_is_named_with_both_batches(self, corpus_folder):
        points = [{"num_params": 6e3, "num_tokens": tokens} for tokens in (128 * 10 + 16, 128 * 100, 128 * 200)]
        plan = plan_of(with_values(TRUNK, design__points=points, training__warmup_tokens=128), corpus_folder)
        odd, short, long = plan.runs
        assert odd.branch is None
        assert short.branch is not None
        assert odd.global_batch_sequences != long.global_batch_sequences
        (said,) = [warning for warning in plan.warnings if "share none" in warning]
        batches = f"batches of {odd.global_batch_sequences} sequences, {long.label} has {long.global_batch_sequences}"
        assert f"{odd.label} ({batches})" in said
        assert short.label not in said

    def test_what_a_plan_takes_is_what_is_paid(self, corpus_folder):
        values = with_values(TRUNK, hardware__gpus_per_node=1)
        shared, alone = (plan_of(with_values(values, training__one_trunk=one), corpus_folder) for one in (True, False))
        longest = shared.runs[-1].ranking_seconds
        paid, separate = (sum(run.ranking_seconds for run in plan.runs) for plan in (shared, alone))
        assert 1.1 < paid / longest < 1.35 < 1.9 < separate / longest


def ids_of(values, folder):
    return [run.run_id for run in plan_of(values, folder).runs]


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"one_trunk": True}, "one_trunk needs schedule: wsd"),
        ({"learning_rate": {"rule": "porian"}, "learning_rates": [1]}, "learning_rate and learning_rates both stand"),
        ({"global_batch": {"rule": "steplaw"}}, "global_batch and global_batch_tokens both stand"),
        ({"learning_rate": {"rule": "porain"}}, "did you mean porian?"),
        ({"learning_rate": {"rule": "marin"}}, "write reference: {learning_rate: ..., num_tokens: ...,"),
        ({"learning_rate": {"rule": "steplaw", "reference": REFERENCE}}, "published constant and reads no reference"),
        ({"learning_rate": {"rule": "steplaw", "params_exponent": -1}}, "write rule: custom to give others"),
        ({"beta2": 0.9, "beta2_half_life_tokens": 1e5}, "beta2_half_life_tokens and beta2 both stand"),
        ({"decay_shape": "linear"}, "says nothing to schedule cosine; it belongs to wsd and wsd-s"),
        ({"schedule": "linear-to-zero", "final_learning_rate_fraction": 0.1}, "says nothing to schedule linear"),
        ({"schedule": "wsd-s", "decays_end_at": [0.5, 0.4, 1]}, "must rise from above 0 and end with 1"),
        ({"schedule": "wsd-s", "decays_end_at": [0.5, 0.9]}, "must rise from above 0 and end with 1"),
        ({"schedule": "wsd", "decay_fraction": 0}, "greater than 0"),
    ],
    ids=str,
)  # fmt: skip
def test_a_recipe_that_cannot_be_is_refused_in_one_line(training, words):
    with pytest.raises(SpecError) as caught:
        spec_of(ruled(**training))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"warmup_tokens": 12800}, "12.8k are 100 steps of 128 tokens, and the run has 100"),
        ({"schedule": "wsd", "decay_fraction": 0.001}, "0.001 of 100 steps is less than one"),
        ({"schedule": "wsd", "decay_fraction": 0.6, "warmup_fraction": 0.5}, "begins at 40; shorten it"),
    ],
    ids=str,
)
def test_a_recipe_that_a_point_is_too_short_for_is_refused_at_planning(training, words, corpus_folder):
    with pytest.raises(PlanError, match=words):
        plan_of(ruled(MICRO, **training), corpus_folder)

"""The plan: identity is content, every number is resolved, and it can be written and read back."""

from __future__ import annotations

import dataclasses
import json

import pytest

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.base.hardware import Machine
from flopsfit_ds.base.units import GIB
from flopsfit_ds.plan import sweep_plan as plan_module
from flopsfit_ds.plan.sweep_plan import RunPlan, build_plan
from helpers.sweeps import MACHINE, MICRO, plan_of, spec_of, with_values, write_bytes_corpus

GPU = {"device": "H100-SXM", "gpus_per_node": 8}


def ids(values, folder) -> list[str]:
    return [run.run_id for run in plan_of(values, folder).runs]


@pytest.mark.parametrize(
    "change",
    [
        {"model__vocab_size": 300},
        {"model__context_length": 32},
        {"model__head_dim": 16},
        {"model__width_per_layer": 3},
        {"model__mlp_ratio": 4},
        {"model__tied_embeddings": False},
        {"model__rope_base": 500},
        {"model__query_heads_per_kv_head": 2},
        {"data__heldout_tokens": 2048},
        {"design__points": [{"num_params": 6e3, "num_tokens": 25600}]},
        {"design__points": [{"num_params": 2e4, "num_tokens": 12800}]},
        {"training__global_batch_tokens": 256},
        {"training__learning_rates": [2e-2]},
        {"training__learning_rate_reference_params": 1e6},
        {"training__warmup_fraction": 0.5},
        {"training__final_learning_rate_fraction": 0.5},
        {"training__weight_decay": 0.2},
        {"training__beta1": 0.5},
        {"training__beta2": 0.5},
        {"training__epsilon": 1e-5},
        {"training__gradient_clipping": 0.5},
        {"training__precision": "bf16"},
        {"training__seeds": [1]},
        {"training__frozen_parameters": ["norm.weight"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_can_change_the_loss_changes_the_run_id(change, corpus_folder):
    assert set(ids(with_values(MICRO, **change), corpus_folder)).isdisjoint(ids(MICRO, corpus_folder))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"output_root": "elsewhere"},
        {"training__checkpoint_every": 1},
        {"placement__zero_stages": [3]},
        {"placement__zero_stages": [1]},
        {"placement__num_gpus": [2]},
        {"placement__max_micro_batch_size_per_gpu": 1},
        {"placement__activation_checkpointing": "always"},
        {"placement": {"zero_stages": [3], "offload": "always"}},
        {"placement__memory_margin": 0.5},
        {"placement__points_per_gpu": 2},
        {"hardware": GPU},
        {"hardware__device_memory": "10GiB"},
        {"hardware__price_per_gpu_hour": 3},
        {"execution__max_attempts": 7},
        {"execution__hang_timeout": 5},
        {"fit__law": "kaplan"},
        {"fit__target_compute": 1e20},
    ],
    ids=str,
)
def test_what_cannot_change_the_loss_leaves_the_run_id_alone(change, corpus_folder):
    assert ids(with_values(MICRO, **change), corpus_folder) == ids(MICRO, corpus_folder)


def test_placements_that_share_a_run_id_really_differ(corpus_folder):
    strategies = {
        plan_of(with_values(MICRO, placement=rules), corpus_folder).runs[0].placement.strategy
        for rules in (
            {},
            {"zero_stages": [3]},
            {"zero_stages": [3], "num_gpus": [2]},
            {"max_micro_batch_size_per_gpu": 1},
        )
    }
    assert len(strategies) == 4


def test_changed_data_is_a_new_run_and_moved_data_is_not(corpus_folder, tmp_path_factory):
    before = ids(MICRO, corpus_folder)
    moved = tmp_path_factory.mktemp("moved")
    (corpus_folder / "corpus.txt").rename(moved / "corpus.txt")
    assert ids(MICRO, moved) == before
    with (moved / "corpus.txt").open("ab") as stream:
        stream.write(b"!")
    assert ids(MICRO, moved) != before


def test_a_change_of_the_training_code_is_a_new_run(corpus_folder, monkeypatch):
    before = ids(MICRO, corpus_folder)
    monkeypatch.setattr(plan_module, "TRAINING_VERSION", plan_module.TRAINING_VERSION + 1)
    assert ids(MICRO, corpus_folder) != before


def test_the_id_does_not_depend_on_the_machine_the_plan_is_made_on(corpus_folder):
    spec = spec_of(with_values(MICRO, hardware=None))
    machines = (MACHINE, Machine("H100-SXM", 8, None, 900 * GIB, 2), Machine("L4", 1, None, 64 * GIB))
    plans = [build_plan(spec, spec_folder=corpus_folder, machine=machine) for machine in machines]
    assert len({plan.runs[0].run_id for plan in plans}) == 1
    assert len({plan.cluster for plan in plans}) == 3


def test_every_learning_rate_and_seed_is_a_run_of_its_own_with_a_label_that_tells_them_apart(corpus_folder):
    values = with_values(MICRO, training__learning_rates=[1e-3, 1e-2], training__seeds=[0, 1, 2])
    runs = plan_of(values, corpus_folder).runs
    assert len({run.run_id for run in runs}) == len({run.label for run in runs}) == 6
    assert {(run.recipe.learning_rate, run.seed) for run in runs} == {(r, s) for r in (1e-3, 1e-2) for s in (0, 1, 2)}


@pytest.mark.parametrize(
    ("seeds_at", "expected"),
    [("all", [3] * 6), ("smallest", [3, 3, 3, 1, 1, 1]), ("some", [1, 3, 1, 1, 3, 1])],
)
def test_seeds_are_trained_where_they_are_asked_for_and_the_first_everywhere(seeds_at, expected, corpus_folder):
    design = {"method": "isoflop", "compute_budgets": [1e10, 4e10], "sizes_per_budget": 3}
    values = with_values(MICRO, design=design, training__seeds=[5, 6, 7], training__seeds_at=seeds_at)
    runs = plan_of(values, corpus_folder).runs
    points = list(dict.fromkeys((run.compute_budget_flops, run.num_params_total) for run in runs))
    seeds = [[r.seed for r in runs if (r.compute_budget_flops, r.num_params_total) == point] for point in points]
    assert [len(each) for each in seeds] == expected
    assert all(each == [5, 6, 7][: len(each)] for each in seeds)


def test_a_ladder_has_its_seeds_at_the_smallest_size_or_at_the_fewest_tokens_of_each(corpus_folder):
    design = {"method": "ladder", "num_params": [2e4, 6e3], "tokens_per_parameter": [20, 10]}
    values = with_values(MICRO, design=design, training__seeds=[0, 1])
    for seeds_at, expected in (("smallest", {7}), ("some", {10})):
        runs = plan_of(with_values(values, training__seeds_at=seeds_at), corpus_folder).runs
        twice = [run for run in runs if run.seed == 1]
        assert len(runs) == 4 + len(twice) == 6
        what = {round(run.num_tokens / run.num_params_total) for run in twice}
        sizes = {round(run.num_params_total / 1e3) for run in twice}
        assert (sizes if seeds_at == "smallest" else what) == expected


@pytest.mark.parametrize("method", ["ladder", "points"])
def test_a_size_that_the_family_does_not_come_near_to_is_told(corpus_folder, method):
    """Widths by thousands: asked for 1 B parameters a plan had 1.47 B, and said nothing."""
    sizes = [1e9, 8e9]
    design = {"method": "ladder", "num_params": sizes, "tokens_per_parameter": [20]}
    if method == "points":
        design = {"method": "points", "points": [{"num_params": size, "compute": 120 * size**2} for size in sizes]}
    coarse = {"vocab_size": 128256, "context_length": 2048, "head_dim": 128, "query_heads_per_kv_head": 8}
    data = {"source": "tokens", "path": "none.bin", "num_tokens": "1T", "heldout_tokens": 100_000}
    values = with_values(MICRO, model=coarse, design=design, data=data, hardware=GPU)
    values = with_values(values, training__global_batch_tokens=2**19)
    plan = build_plan(spec_of(values), spec_folder=corpus_folder)
    (told,) = [warning for warning in plan.warnings if "are asked for" in warning]
    assert plan.runs[0].num_params_total == pytest.approx(1.47e9, rel=0.01)
    assert "1B parameters are asked for, and the nearest model has 1.47B (+47%)" in told
    assert "8B" not in told
    fine = with_values(values, model__query_heads_per_kv_head=1)
    assert not any("are asked for" in each for each in build_plan(spec_of(fine), spec_folder=corpus_folder).warnings)


def test_one_seed_at_some_points_is_refused():
    with pytest.raises(SpecError, match=r"seeds_at: some says nothing to one seed; write seeds: \[0, 1, 2\]"):
        spec_of(with_values(MICRO, training__seeds_at="some"))


def test_data_seen_more_than_four_times_is_told_of_with_the_law_that_knows_it(corpus_folder):
    for tokens, told in ((4e5, False), (1.2e6, True)):
        points = [{"num_params": 6e3, "num_tokens": tokens}]
        warnings = plan_of(with_values(MICRO, design__points=points), corpus_folder).warnings
        (repeats,) = [warning for warning in warnings if "repeats" in warning]
        assert ("fit.law: data-constrained" in repeats) == told


def test_the_learning_rate_follows_the_size_where_a_reference_is_given(corpus_folder):
    points = [{"num_params": 6e3, "num_tokens": 12800}, {"num_params": 1e5, "num_tokens": 12800}]
    values = with_values(
        MICRO,
        design__points=points,
        training__learning_rate_reference_params=1e4,
        training__learning_rate_exponent=-0.5,
        training__learning_rates=[1e-2],
    )
    for run in plan_of(values, corpus_folder).runs:
        assert run.recipe.learning_rate == pytest.approx(1e-2 * (run.num_params_total / 1e4) ** -0.5)


def test_a_plan_is_plain_json_and_a_run_is_read_back_equal(corpus_folder):
    plan = plan_of(with_values(MICRO, training__frozen_parameters=["norm.*"]), corpus_folder)
    text = json.dumps(plan.to_json_dict(), allow_nan=False)
    assert RunPlan.from_json_dict(json.loads(text)["runs"][0]) == plan.runs[0]


def test_nothing_in_a_run_is_left_open(corpus_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(corpus_folder))
    run = plan_of(with_values(MICRO, design__points=[{"num_params": 6e3, "compute": 1e9}]), corpus_folder).runs[0]
    # a run alone has no trunk, and this machine has trained none that tells the time; everything else has a number
    open_fields = [field.name for field in dataclasses.fields(run) if getattr(run, field.name) is None]
    open_fields += [f.name for f in dataclasses.fields(run.placement) if getattr(run.placement, f.name) is None]
    assert open_fields == ["branch", "predicted_seconds", "predicted_gpu_hours", "predicted_cost"]
    assert "auto" not in json.dumps(run.to_json_dict())


@pytest.mark.parametrize(
    ("patterns", "said"), [(["nothing.*"], "'nothing.*' matches no parameter"), (["*"], "nothing is left to train")]
)
def test_frozen_parameters_that_do_not_exist_or_leave_nothing_are_refused(patterns, said, corpus_folder):
    with pytest.raises(PlanError) as caught:
        plan_of(with_values(MICRO, training__frozen_parameters=patterns), corpus_folder)
    assert said in str(caught.value)


def test_few_steps_are_a_warning(tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt")
    plan = plan_of(with_values(MICRO, design__points=[{"num_params": 6e3, "num_tokens": 1280}]), tmp_path)
    assert any("only 10 optimiser steps" in warning for warning in plan.warnings)


def test_a_class_of_the_users_own_needs_permission(corpus_folder):
    model = {"family": "class", "class_path": "os.path:Nothing", "size_parameter": "width"}
    with pytest.raises(PlanError, match="--allow-import os"):
        plan_of(with_values(MICRO, model=model), corpus_folder)


CLUSTER = {"device": "H100-SXM", "gpus_per_node": 8, "num_nodes": 64}
LADDER = {
    "name": "ladder",
    "model": {"vocab_size": 128256, "context_length": 4096, "query_heads_per_kv_head": 8, "head_dim": 128},
    "data": {"source": "tokens", "path": "none.bin", "num_tokens": "15T", "heldout_tokens": 1_000_000},
    "design": {"method": "ladder", "num_params": ["1B", "3B", "8B", "20B", "40B", "70B"], "tokens_per_parameter": [20]},
    "training": {"global_batch_tokens": 2**22},
    "hardware": CLUSTER,
}


def test_a_sweep_does_not_wait_for_one_point_and_says_how_long_it_takes():
    narrow, wide = plan_of(with_values(LADDER, placement__moldable=False)), plan_of(LADDER)
    before, after = narrow.makespan(), wide.makespan()
    assert before.seconds > 3 * after.seconds
    # not shorter than all GPUs busy, nor than its longest run; and near it
    assert after.seconds >= max(run.placement.predicted_seconds for run in wide.runs)
    assert after.lower_bound_seconds <= after.seconds <= 1.6 * after.lower_bound_seconds
    largest = wide.runs[-1]
    cheapest = narrow.runs[-1].placement
    assert largest.placement.strategy.num_gpus > cheapest.strategy.num_gpus
    assert largest.run_id == narrow.runs[-1].run_id
    assert f"on {cheapest.strategy.num_gpus} it takes" in largest.placement.reason
    assert largest.placement.predicted_gpu_hours < 1.1 * cheapest.predicted_gpu_hours
    assert largest.placement.memory.device_total_bytes <= wide.cluster.device_memory_bytes
    small = wide.runs[0].placement  # what nobody waits for stays where it is cheapest
    assert small.strategy == narrow.runs[0].placement.strategy


def test_slurm_gets_the_wide_layouts_too():
    from flopsfit_ds.engine.slurm.submissions import plan_submissions

    plan = plan_of(LADDER)
    jobs = plan_submissions(plan)
    gpus = {job.run_ids[0]: job.nodes * job.gpus_per_node for job in jobs}
    assert gpus == {run.run_id: run.placement.strategy.num_gpus for run in plan.runs}
    assert max(job.minutes for job in jobs) < 1.6 * plan.makespan().seconds / 60


def test_all_points_that_fit_nowhere_are_listed():
    node = with_values(LADDER, hardware={"device": "H100-SXM", "gpus_per_node": 8}, placement={"offload": "never"})
    with pytest.raises(PlanError) as caught:
        plan_of(node)
    text = str(caught.value)
    assert text.startswith("2 of 6 points cannot be placed: ")
    assert "39.9B" in text
    assert "69.8B" in text
    assert text.count("smallest hardware that would hold it") == 2
    assert "\n" not in text


def test_repeated_data_is_a_warning_with_how_often(tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt")
    once = plan_of(MICRO, tmp_path)
    unique = once.runs[0].unique_tokens
    assert not any("repeats" in warning for warning in once.warnings)
    twice = {"num_params": 6e3, "num_tokens": 2 * unique}
    assert any(
        "the data repeats 2.0 times" in w
        for w in plan_of(with_values(MICRO, design__points=[twice]), tmp_path).warnings
    )


def test_runs_that_repeat_data_or_have_few_steps_share_a_line_that_names_the_worst(tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt", 1024 + 6400)
    points = [{"num_params": 6e3, "num_tokens": each} for each in (12_800, 25_600, 19_200, 640, 256)]
    warnings = plan_of(with_values(MICRO, design__points=points), tmp_path).warnings
    (repeats,) = [each for each in warnings if "repeats" in each]
    assert "trains on 25.6k tokens" in repeats
    assert "the data repeats 4.0 times (and in 2 other runs, too)" in repeats
    (short,) = [each for each in warnings if "optimiser steps" in each]
    assert "only 2 optimiser steps, and 1 other run fewer than 20" in short

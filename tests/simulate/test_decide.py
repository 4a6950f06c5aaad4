"""The simulation decides what the closed forms proposed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.engine.disk.folder import review_plan
from flopsfit_ds.engine.progress import Silence
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.simulate import Simulator
from flopsfit_ds.simulate.decide import placed_with, review_placements
from flopsfit_ds.spec import validate_spec
from flopsfit_ds.study.steps import build_plan

GENEROUS = "40GiB"


def plan_for(device_memory: Any, **sections: Any) -> SweepPlan:
    """One point, at ZeRO-3 on two GPUs."""
    rules = {"zero_stages": [3], "num_gpus": [2], "offload": "never", "memory_margin": 0.001}
    values = {
        "name": "near",
        "model": {"vocab_size": 4096, "context_length": 256},
        "data": {"source": "tokens", "path": "none.bin", "num_tokens": "1B", "heldout_tokens": 100_000},
        "design": {"method": "points", "points": [{"num_params": "2M", "num_tokens": "40M"}]},
        "training": {"global_batch_tokens": 16384},
        "hardware": {"device": "H100-SXM", "gpus_per_node": 2, "device_memory": device_memory},
        "placement": rules | {"activation_checkpointing": "always"},
    }
    return build_plan(validate_spec({**values, **sections}, "test"))


pytestmark = pytest.mark.usefixtures("one_simulation_process")


def review(plan: SweepPlan) -> tuple[SweepPlan, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    return review_placements(plan, plan.runs, lambda done, total: told.append((done, total))), told


def simulated_bytes(plan: SweepPlan) -> int:
    """What the simulation says of the proposed layout, on a device that has room for it."""
    from flopsfit_ds.simulate.case import LanguageModelCase

    run = plan.runs[0]
    placement = run.placement
    with Simulator() as simulator:
        memory, _ = simulator.estimate(
            LanguageModelCase(run.model),
            run.num_params_total,
            run.num_params_trainable,
            placement.strategy,
            placement.gradient_accumulation_steps,
            plan.cluster,
            plan.spec.placement.memory_margin,
        )
    return memory.peak_allocated_bytes


def nearly_full() -> SweepPlan:
    """A plan for a device with just the room that the closed forms see, and less than the simulation finds."""
    roomy = plan_for(GENEROUS)
    proposed = roomy.runs[0].placement.memory
    lacking = simulated_bytes(roomy) - proposed.peak_allocated_bytes
    assert lacking > 1e6, "a layout that the closed forms see too small is needed here"
    fixed = proposed.device_total_bytes - round(0.001 * roomy.cluster.device_memory_bytes)
    plan = plan_for(int((fixed + lacking / 2) / (1 - 0.001)))
    assert plan.runs[0].placement.strategy == roomy.runs[0].placement.strategy
    return plan


@pytest.mark.slow
def test_a_run_that_does_not_fit_by_simulation_gets_the_next_layout_before_it_is_trained(tmp_path):
    plan = replace(nearly_full(), folder=tmp_path / "sweep")
    folder = SweepFolder(plan.folder)
    folder.prepare()
    reviewed = review_plan(plan, folder, Silence())
    before, after = plan.runs[0].placement, reviewed.runs[0].placement
    assert after.strategy.micro_batch_size_per_gpu == before.strategy.micro_batch_size_per_gpu // 2
    assert after.gradient_accumulation_steps == 2 * before.gradient_accumulation_steps
    assert after.memory.method == "simulation"
    assert after.memory.device_total_bytes <= plan.cluster.device_memory_bytes
    assert "with a micro-batch of 32 needs" in after.reason
    assert after.fallbacks == before.fallbacks[1:]
    assert reviewed.runs[0].run_id == plan.runs[0].run_id
    moved = [event for event in folder.events.read() if event["event"] == "moved"]
    assert [event["run_id"] for event in moved] == [plan.runs[0].run_id]


@pytest.mark.slow
def test_what_fits_nowhere_by_simulation_is_refused_with_all_that_was_tried():
    plan = nearly_full()
    run = plan.runs[0]
    alone = replace(run, placement=replace(run.placement, fallbacks=(), alternatives=()))
    with pytest.raises(PlanError, match=r"micro-batch of 32 needs .* simulated; plan for more GPUs"):
        review(replace(plan, runs=(alone,)))


def test_what_has_room_is_not_simulated():
    plan = plan_for(GENEROUS)
    assert review(plan) == (plan, [])


def test_cpu_slots_are_not_simulated():
    plan = plan_for("64MiB", hardware={"device": "cpu", "gpus_per_node": 2, "device_memory": "450MiB"})
    assert plan.runs[0].placement.memory.device_total_bytes > 0.85 * plan.cluster.device_memory_bytes
    assert review(plan) == (plan, [])


def test_the_spec_can_forbid_it(tmp_path):
    plan = plan_for(GENEROUS, execution={"simulate_memory": False})
    tight = replace(plan.cluster, device_memory_bytes=plan.runs[0].placement.memory.device_total_bytes)
    plan = replace(plan, cluster=tight, folder=tmp_path)
    assert review_plan(plan, SweepFolder(tmp_path), Silence()) == plan


def test_a_model_that_cannot_be_simulated_keeps_its_placement_with_a_warning():
    plan = plan_for(GENEROUS)
    tight = replace(plan.cluster, device_memory_bytes=plan.runs[0].placement.memory.device_total_bytes)
    unknown = replace(plan.runs[0].model, num_heads=7)
    run = replace(plan.runs[0], model=unknown)
    reviewed, told = review(replace(plan, cluster=tight, runs=(run,)))
    assert reviewed.runs == (run,)
    assert told == [(0, 1), (1, 1)]
    assert "placed by closed forms alone, for the simulation stopped at" in reviewed.warnings[-1]


def blind(plan: SweepPlan, **changes: Any) -> SweepPlan:
    """The plan of a model whose activations could not be measured."""
    (run,) = plan.runs
    profile = replace(run.placement.profile, block_saved_bytes=0, block_saved_bytes_zero3=0, outside_saved_bytes=0)
    profile = replace(profile, block_transient_bytes=0, block_input_bytes=0, loss_bytes=0, logits_bytes=0)
    return replace(plan, runs=(replace(placed_with(plan, run, profile), **changes),))


ANYWHERE = {"offload": "never", "activation_checkpointing": "never", "memory_margin": 0.001}


@pytest.mark.slow
def test_activations_that_nothing_could_measure_are_simulated_however_much_room_there_is():
    known = plan_for(
        GENEROUS, placement=ANYWHERE, model={"vocab_size": 512, "context_length": 256}
    )  # no loss by chunks
    plan = blind(known)
    placement = plan.runs[0].placement
    assert placement.strategy.micro_batch_size_per_gpu == 1
    assert "without activations, which are not known" in placement.reason
    reviewed, told = review(plan)
    assert told == [(0, 1), (1, 1)]
    after = reviewed.runs[0].placement
    assert reviewed.runs[0].run_id == plan.runs[0].run_id
    # the layout of the model whose activations are known, and as much memory
    assert after.strategy == known.runs[0].placement.strategy
    assert 0.98 <= after.memory.peak_allocated_bytes / simulated_bytes(known) <= 1.1
    assert not [warning for warning in reviewed.warnings if "not known" in warning]


@pytest.mark.slow
def test_activations_that_would_not_fit_are_found_before_training():
    """The case of a model that was planned at 4.7 GiB and took 54.4."""
    roomy = blind(plan_for(GENEROUS, placement=ANYWHERE))
    states = roomy.runs[0].placement.memory.device_total_bytes
    known = plan_for(GENEROUS, placement=ANYWHERE).runs[0].placement
    assert states * 1.5 < known.memory.device_total_bytes
    plan = blind(plan_for(int(1.1 * states), placement=ANYWHERE))
    reviewed, _ = review(plan)
    after = reviewed.runs[0].placement
    assert after.strategy.micro_batch_size_per_gpu < known.strategy.micro_batch_size_per_gpu
    assert after.memory.device_total_bytes <= plan.cluster.device_memory_bytes
    assert after.memory.method == "simulation"


def test_what_neither_can_be_measured_nor_simulated_keeps_the_smallest_micro_batch_and_the_plan_says_so():
    plan = plan_for(GENEROUS, placement=ANYWHERE)
    plan = blind(plan, model=replace(plan.runs[0].model, num_heads=7))
    reviewed, _ = review(plan)
    assert reviewed.runs == plan.runs
    assert reviewed.runs[0].placement.strategy.micro_batch_size_per_gpu == 1
    assert "activations is not known, for the simulation stopped at" in reviewed.warnings[-1]
    assert "smallest micro-batch" in reviewed.warnings[-1]

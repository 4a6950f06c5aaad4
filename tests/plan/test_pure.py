"""DeepSpeed's own bf16 at planning: never at ZeRO-0, a run of its own, less memory and less to send."""

from __future__ import annotations

import re

import pytest

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.cli.planning.memory import Flags, point_of_flags
from flopsfit_ds.plan.recipe.switches import check_switches
from helpers.sweeps import MICRO, plan_of, spec_of, with_values

GPUS = with_values(
    MICRO,
    model={"vocab_size": 32000, "context_length": 1024},
    data={},
    design={"method": "points", "points": [{"num_params": size, "num_tokens": 1e9} for size in (1e8, 5e9)]},
    training={"global_batch_tokens": 2**19, "precision": "bf16-pure"},
    hardware={"device": "H100-SXM", "gpus_per_node": 8},
)
CLASS = {"family": "class", "class_path": "a:B", "size_parameter": "width", "context_length": 16}


def test_no_point_is_placed_at_zero0_and_none_falls_back_to_it():
    plan = plan_of(GPUS)
    for run in plan.runs:
        place = run.placement
        layouts = [*place.runners_up, *place.alternatives, *place.fallbacks]
        assert {place.strategy.zero_stage, *(layout.strategy.zero_stage for layout in layouts)} <= {1, 2, 3}
    alone = plan_of(with_values(GPUS, placement={"num_gpus": [1]}, design__points=GPUS["design"]["points"][:1]))
    assert alone.runs[0].placement.strategy.zero_stage == 1
    told = [plan_of(with_values(GPUS, placement={"zero_stages": list(stages)})).warnings for stages in ((0, 2), (2, 3))]
    assert [sum("zero_stages: 0 is left out" in line for line in lines) for lines in told] == [1, 0]
    assert not any("is left out" in line for line in plan.warnings)
    autocast = plan_of(with_values(GPUS, training__precision="bf16"))
    assert autocast.runs[0].placement.strategy.zero_stage == 0
    assert {run.run_id for run in plan.runs}.isdisjoint(run.run_id for run in autocast.runs)
    assert plan.cluster.peak_flops == autocast.cluster.peak_flops


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_point_needs_less_and_sends_less_than_under_autocast(stage):
    one = {"placement": {"num_gpus": [8], "zero_stages": [stage], "max_micro_batch_size_per_gpu": 1}}
    pure, autocast = (
        plan_of(with_values(GPUS, training__precision=kind, **one)).runs[0].placement for kind in ("bf16-pure", "bf16")
    )
    # 2 bytes and not 4 of each weight and gradient, and no copies of weights
    assert pure.memory.peak_allocated_bytes < autocast.memory.peak_allocated_bytes
    assert pure.memory.components.optimizer_states == autocast.memory.components.optimizer_states
    assert pure.predicted_step_seconds < autocast.predicted_step_seconds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"placement": {"zero_stages": [0]}},
            r"placement\.zero_stages: \[0\]: .*zero gradients.*write zero_stages: \[",
        ),
        ({"placement": {"communication": "bf16"}}, r"communication: bf16: .*leave it out"),
        ({"training__tf32": True}, "tf32: true beside precision: bf16-pure"),
        (
            {"training__optimizer": {"name": "lion"}},
            r"training\.optimizer: lion.*write name: adamw, or precision: bf16",
        ),
        ({"model": CLASS}, "for the built-in decoder alone.*write precision: bf16"),
    ],
    ids=["zero0", "communication", "tf32", "optimizer", "model"],
)
def test_what_contradicts_is_refused(changes, words):
    with pytest.raises(PlanError, match=words):
        check_switches(spec_of(with_values(GPUS, **changes)), "H100-SXM")


def test_an_estimate_leaves_zero0_out_and_refuses_it():
    flags = Flags(32000, 1024, 1, 1, None, 8, False, "bf16-pure", "H100-SXM")
    point = point_of_flags(4, 512, 8, None, None, flags)
    assert {layout.strategy.zero_stage for layout in point.search.survey()} == {1, 2, 3}
    with pytest.raises(SpecError, match=re.escape("--precision bf16-pure beside --zero 0")):
        point_of_flags(4, 512, 8, None, None, Flags(32000, 1024, 1, 1, 0, 8, False, "bf16-pure", "H100-SXM"))

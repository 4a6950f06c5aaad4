"""Models of transformers by name, through real engines: one loss, however a point is sharded."""

from __future__ import annotations

import pytest

from flopsfit_ds.simulate import Simulator
from helpers.study.hf_models import TOYS
from helpers.study.hf_training import STEPS, deep_plan, peaks, short_plan, trained
from helpers.train.ranks import Layout

RULED = {"training__mup": {"base_width": 16, "base_depth": 1}}
QUICK = ("llama", "mixtral")
"""The others take a minute together."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in QUICK else pytest.mark.long) for name in TOYS]
)
def test_a_model_of_transformers_has_one_loss_at_every_stage(server, tmp_path, name):
    whole = trained(server, tmp_path / "0", name, Layout(0, 2))
    assert whole.codes == [0, 0], whole.logs()
    assert len(whole.losses) == STEPS
    assert whole.losses[-1] < whole.losses[0] - 0.05
    for stage in (2, 3):
        sharded = trained(server, tmp_path / str(stage), name, Layout(stage, 2))
        assert sharded.codes == [0, 0], sharded.logs()
        assert sharded.losses == pytest.approx(whole.losses, abs=2e-5)
        assert sharded.outcome["loss"] == pytest.approx(whole.outcome["loss"], abs=2e-5)
        assert sharded.outcome["observed"]["zero_stage"] == stage


@pytest.mark.slow
@pytest.mark.usefixtures("one_simulation_process")
def test_recomputed_blocks_of_a_model_of_transformers_change_no_loss_and_save_memory(server, tmp_path):
    """With muP, whose multipliers are hooks that run again."""
    kept = trained(server, tmp_path / "kept", "llama", Layout(0, 1), **RULED)
    assert kept.codes == [0], kept.logs()
    recomputed = trained(server, tmp_path / "3", "llama", Layout(3, 2, activation_checkpointing=True), **RULED)
    assert recomputed.codes == [0, 0], recomputed.logs()
    assert recomputed.losses == pytest.approx(kept.losses, abs=2e-5)
    assert recomputed.outcome["loss"] == pytest.approx(kept.outcome["loss"], abs=2e-5)
    run = deep_plan(tmp_path / "deep").runs[0]
    with Simulator() as simulator:
        closed, seen = peaks(simulator, run, Layout(0, 1, activation_checkpointing=True), batch=64)
        _, whole = peaks(simulator, run, Layout(0, 1), batch=64)
    assert seen < 0.7 * whole
    assert 1 <= closed / seen < 2  # on the safe side: what the loss holds counts as of a block, too


def test_blocks_are_recomputed_where_the_placement_says_so_and_a_routers_loss_allows_it(tmp_path):
    always = {"placement__activation_checkpointing": "always"}
    assert short_plan("llama", tmp_path, **always).runs[0].placement.strategy.activation_checkpointing
    assert not short_plan("llama", tmp_path).runs[0].placement.strategy.activation_checkpointing  # there is room
    balanced = {"model__fields": TOYS["mixtral"].model["fields"] | {"output_router_logits": True}}
    assert not short_plan("mixtral", tmp_path, **always, **balanced).runs[0].placement.strategy.activation_checkpointing

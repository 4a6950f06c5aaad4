"""Models of transformers by name, through real engines: one loss, however a point is sharded."""

from __future__ import annotations

import pytest

from helpers.study.hf_models import TOYS
from helpers.study.hf_training import STEPS, trained
from helpers.train.ranks import Layout

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

"""Models that others wrote, through real engines."""

from __future__ import annotations

import pytest

from helpers.study.foreign_training import STEPS, trained
from helpers.train.from_config import NAME as FROM_CONFIG
from helpers.train.ranks import Layout


@pytest.mark.parametrize("stage", [2, 3])
def test_a_parameter_without_a_dimension_trains_at_every_stage_on_two_ranks(server, tmp_path, stage):
    """CLIP's temperature: DeepSpeed flattens and partitions parameters, which a scalar does not survive."""
    expected = trained(server, tmp_path / "whole", "CLIP", Layout(0, 2))
    found = trained(server, tmp_path / "sharded", "CLIP", Layout(stage, 2))
    assert found.codes == expected.codes == [0, 0], found.logs()
    assert len(found.losses) == STEPS
    assert found.losses == pytest.approx(expected.losses, abs=1e-6)
    assert found.outcome["loss"] == pytest.approx(expected.outcome["loss"], abs=1e-6)


@pytest.mark.parametrize("name", ["expert blocks", pytest.param("Switch", marks=[pytest.mark.slow, pytest.mark.long])])
def test_experts_that_a_ranks_batch_passes_by_train_at_zero_3(server, tmp_path, name):
    """Ranks would gather and reduce different parameters, and abort, if the modules around them were not leaves."""
    expected = trained(server, tmp_path / "whole", name, Layout(0, 2))
    found = trained(server, tmp_path / "sharded", name, Layout(3, 2, 2))
    assert found.codes == expected.codes == [0, 0], found.logs()
    assert found.losses == pytest.approx(expected.losses, abs=1e-6)
    assert found.outcome["loss"] == pytest.approx(expected.outcome["loss"], abs=1e-6)


def test_a_model_that_from_config_builds_has_the_same_weights_at_zero_3(server, tmp_path):
    """transformers would build it in parts and draw other weights: another first loss, under the same identity."""
    expected = trained(server, tmp_path / "whole", FROM_CONFIG, Layout(0, 2))
    found = trained(server, tmp_path / "sharded", FROM_CONFIG, Layout(3, 2))
    assert found.codes == expected.codes == [0, 0], found.logs()
    assert found.losses == pytest.approx(expected.losses, abs=1e-6)
    assert found.outcome["loss"] == pytest.approx(expected.outcome["loss"], abs=1e-6)

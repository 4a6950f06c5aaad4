"""Experts behind frozen layers, through real engines."""

from __future__ import annotations

import pytest

from helpers.study.foreign_training import trained
from helpers.study.frozen_experts import NAME
from helpers.train.ranks import Layout


def test_experts_behind_frozen_layers_train_at_zero_3(server, tmp_path):
    """DeepSpeed's own list of leaves has their blocks, whose inputs need no gradient: it would reduce too early."""
    expected = trained(server, tmp_path / "whole", NAME, Layout(0, 2))
    found = trained(server, tmp_path / "sharded", NAME, Layout(3, 2, 2))
    assert vars(found)["codes"] == vars(expected)["codes"] == [0, 0], found.logs()
    assert found.outcome["loss"] == pytest.approx(expected.outcome["loss"], abs=1e-6)

"""Models that others wrote, simulated: operations that PyTorch does not know on tensors without memory."""

from __future__ import annotations

import pytest

from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.memory import Strategy, estimate_memory
from flopsfit_ds.simulate import Simulator
from helpers.study.foreign_models import FOREIGN
from helpers.study.foreign_training import WIDTH, measured, simulated

CPU = resolve_cluster("fp32", device="cpu", gpus_per_node=2, host_memory=2**34)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CLIP", "Mixtral"])
def test_scalars_and_grouped_products_in_fp32_are_simulated(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    strategy, found = Strategy(2, 2, 4, False, "none", "fp32"), measured(FOREIGN[name], WIDTH)
    with Simulator() as simulator:
        seen = simulated(simulator, FOREIGN[name], WIDTH, strategy, CPU, found)
    closed = estimate_memory(found.profile, strategy, CPU, accumulation=1)
    assert seen.components.parameters == pytest.approx(4 * found.num_params, rel=0.1)
    assert 0.9 < closed.peak_allocated_bytes / seen.peak_allocated_bytes < 2

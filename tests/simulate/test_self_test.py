"""The self-test: a PyTorch or DeepSpeed that gives other bytes is refused, with what then happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.memory import Strategy
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.simulate import SimulationError, Simulator
from flopsfit_ds.simulate.case import LanguageModelCase
from flopsfit_ds.simulate.server import SimulationServer

SHAPE = ModelShape(1, 32, 2, 2, 64, 64, 16)
H100 = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8)

OTHER_TORCH = """
import torch
def zeros_like(tensor, **more):
    return torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)[1:].view(tensor.shape)
torch.zeros_like = zeros_like
"""
"""AdamW's moments are four bytes larger: the least that another version may do."""
OTHER_DEEPSPEED = """
import deepspeed.runtime.zero.stage3
del deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3.initialize_optimizer_states
"""


def simulate(simulator: Simulator) -> int:
    strategy = Strategy(0, 1, 1, False, "none", "bf16")
    total = SHAPE.parameters.total
    return simulator.estimate(LanguageModelCase(SHAPE), total, total, strategy, 1, H100)[0].peak_allocated_bytes


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (OTHER_TORCH, r"ZeRO-0 on 2 ranks of a cpu in fp32 peaks at \[.*\] bytes where a real engine has \[3300864"),
        (OTHER_DEEPSPEED, r"ZeRO-3 on 2 ranks .* stopped at AttributeError .*initialize_optimizer_states"),
    ],
)
def test_other_bytes_are_refused_with_what_then_happens_and_asked_for_once(tmp_path, monkeypatch, code, said):
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Simulator() as simulator:
        with pytest.raises(SimulationError, match=said) as caught:
            simulate(simulator)
        assert "closed forms alone" in str(caught.value)
        assert "\n" not in str(caught.value)
        monkeypatch.setattr(SimulationServer, "submit", None)  # nothing is asked a second time
        with pytest.raises(SimulationError, match=said):
            simulate(simulator)
    assert not list(Path(tmp_path, "cache").rglob("*.json")), "a refusal is not kept: the next install may pass"


@pytest.mark.slow
@pytest.mark.usefixtures("one_simulation_process")
def test_a_pass_is_remembered_by_versions_and_code(own_cache, monkeypatch):
    asked: list[str] = []
    submit = SimulationServer.submit
    monkeypatch.setattr(
        SimulationServer, "submit", lambda self, name, what: asked.append(name) or submit(self, name, what)
    )
    with Simulator() as simulator:
        simulate(simulator)
    first = len(asked)
    with Simulator() as simulator:
        simulator.check()
    assert first > 1
    assert len(asked) == first
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    from flopsfit_ds.simulate import cache

    cache._code_version.cache_clear()
    with Simulator() as simulator:
        simulator.check()
    cache._code_version.cache_clear()
    assert len(asked) > first

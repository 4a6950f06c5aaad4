"""The simulation: guards, worlds, components, cache, and what happens to a model that does not run on fake tensors."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.memory import Strategy
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.plan.ds_config import training_config
from flopsfit_ds.simulate import SimulationError, Simulator
from flopsfit_ds.simulate.cache import cache_folder
from flopsfit_ds.simulate.case import LanguageModelCase, simulated_optimizer

SHAPE = ModelShape(2, 128, 4, 4, 344, 512, 64)
TOTAL = SHAPE.parameters.total
H100 = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8)


@pytest.fixture(scope="module")
def simulator(one_simulation_process, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    with Simulator() as started:
        yield started
    patch.undo()


def estimate(simulator: Simulator, strategy: Strategy, frozen: tuple[str, ...] = (), trainable: int = TOTAL):
    case = LanguageModelCase(SHAPE, frozen)
    return simulator.estimate(case, TOTAL, trainable, strategy, 1, H100, ranks=(0,))


@pytest.mark.slow
def test_components_sum_exactly_and_states_are_known(simulator):
    memory, rank = estimate(simulator, Strategy(0, 1, 1, False, "none", "bf16"))
    assert memory.components.total == memory.peak_allocated_bytes
    assert memory.components.optimizer_states == pytest.approx(8 * TOTAL, rel=0.02)
    assert memory.components.gradients == pytest.approx(4 * TOTAL, rel=0.02)
    assert {peak.phase for peak in rank.phases} == {"start", "forward", "backward", "step"}
    assert rank.peak_operation
    assert rank.sizes.total == TOTAL


@pytest.mark.slow
def test_a_thousand_ranks_share_the_states(simulator):
    one, _ = estimate(simulator, Strategy(3, 2, 1, False, "none", "bf16"))
    many, _ = estimate(simulator, Strategy(3, 1024, 1, False, "none", "bf16"))
    assert many.components.optimizer_states < one.components.optimizer_states / 100


def test_a_rank_whose_share_holds_no_parameter_of_a_group_is_simulated(simulator):
    """Of the five norms' 640 weights a rank of 1,024 has none: DeepSpeed then makes a norm of 0.0 by itself."""
    case, strategy = LanguageModelCase(SHAPE), Strategy(1, 1024, 1, False, "none", "fp32")
    memory, rank = simulator.estimate(case, TOTAL, TOTAL, strategy, 1, H100, ranks=(1023,))
    assert rank.rank == 1023
    assert memory.components.optimizer_states == pytest.approx(8 * TOTAL / 1024, abs=4096)


@pytest.mark.slow
def test_offload_moves_states_to_the_host(simulator):
    memory, _ = estimate(simulator, Strategy(3, 2, 1, False, "optimizer", "bf16"))
    assert memory.components.optimizer_states == 0
    assert memory.host_bytes >= 12 * TOTAL / 2


@pytest.mark.slow
def test_offloaded_parameters_leave_the_device_for_the_host(simulator):
    config = training_config(
        zero_stage=3,
        offload="optimizer",
        num_params=TOTAL,
        num_params_trainable=TOTAL,
        world_size=4,
        micro_batch_size_per_gpu=1,
        gradient_accumulation_steps=2,
        gradient_clipping=1.0,
        precision="bf16",
    )
    case, share = LanguageModelCase(SHAPE), TOTAL  # fp32, over four ranks: one byte a parameter
    kept = simulator.rank(case, config, 1, 4, False, H100)
    config["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": True}
    moved = simulator.rank(case, config, 1, 4, False, H100)
    assert kept.end_bytes - moved.end_bytes == pytest.approx(share, rel=0.02)
    assert moved.host_peak_bytes - kept.host_peak_bytes == pytest.approx(share, rel=0.02)
    assert moved.peak_bytes < kept.peak_bytes
    # small tensors that are never partitioned stay on the device
    assert moved.components["parameters"] < 0.1 * kept.components["parameters"]


@pytest.mark.slow
def test_frozen_parameters_have_no_states(simulator):
    trainable = SHAPE.vocab_size * SHAPE.hidden_size
    strategy = Strategy(0, 1, 1, False, "none", "bf16")
    memory, rank = estimate(simulator, strategy, ("embedding.*", "blocks.*", "norm.*"), trainable)
    assert rank.sizes.trainable == trainable
    assert memory.components.optimizer_states == pytest.approx(8 * trainable, rel=0.02)
    assert memory.components.parameters > 4 * TOTAL


@pytest.mark.slow
def test_results_are_kept_by_content(simulator, monkeypatch):
    strategy = Strategy(0, 1, 2, False, "none", "fp32")
    first, _ = estimate(simulator, strategy)
    monkeypatch.setattr("flopsfit_ds.simulate.server.SimulationServer.submit", None)  # a second run would fail
    assert estimate(simulator, strategy)[0] == first
    files = list(cache_folder().glob("*.json"))
    assert files
    kept = [json.loads(file.read_text()) for file in files]
    assert all(content["components"] for content in kept if content != {"passed": True})  # that of the self-test


@dataclass
class BranchingCase:
    """A model whose path depends on its values."""

    draws_weights_in_constructors: bool = False
    optimizer: None = None

    def build_model(self, activation_checkpointing: bool) -> torch.nn.Module:
        return Branching()

    def batch(self, num_sequences: int) -> Any:
        return torch.zeros(num_sequences, 4)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return model(batch).mean()

    def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return simulated_optimizer(model)


class Branching(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x[x.sum(-1) > 0])[: x.nonzero().shape[0]]


@pytest.mark.slow
def test_a_model_that_depends_on_values_is_an_error_that_says_what_stopped_it(simulator):
    with pytest.raises(SimulationError, match=r"(?i)data.?dependent|dynamic|nonzero|index"):
        simulator.estimate(BranchingCase(), 20, 20, Strategy(0, 1, 1, False, "none", "fp32"), 1, H100)


IN_SOME_BUILDS = {"_cudnn_rnn"}
"""Registered by PyTorch only where it is built with CUDA."""
FP32_UNLISTED = {"norm.Scalar", "norm.ScalarOpt_dim", "norm.names_ScalarOpt_dim", "linalg_matrix_sqrth"}
"""Registered one by one, below the lists of the header; in fp32, as what the table does not name."""


def test_autocast_knows_every_operator_that_this_torch_casts_on_cuda():
    from flopsfit_ds.simulate.tensors import autocast

    registered = {name.removeprefix("aten::") for name in autocast.cuda_operators()}
    for listed in (autocast._LOWER, autocast._FP32_WITH_DTYPE, autocast._PROMOTE, autocast._REFUSED):
        assert set(listed) - IN_SOME_BUILDS <= registered, set(listed) - registered
    named = (
        autocast._LOWER
        | autocast._FP32_WITH_DTYPE
        | autocast._FP32_WITH_DTYPE_NAMED
        | autocast._PROMOTE
        | {*autocast._REFUSED}
    )
    header = (Path(torch.__file__).parent / "include/ATen/autocast_mode.h").read_text()
    listed_as_fp32 = set(re.findall(r"_\(([\w, ]+)\)", header.split("define AT_FORALL_FP32(_)")[1].split("#define")[0]))
    fp32 = {name.replace(", ", ".") for name in listed_as_fp32} | FP32_UNLISTED
    assert registered - named - fp32 == set()

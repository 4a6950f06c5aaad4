"""Closed forms from first principles: what each stage shards, and what grows with blocks, GPUs and cards."""

from __future__ import annotations

import math

import pytest

from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.memory import MemoryEstimate, Strategy, estimate_memory, profile_decoder
from flopsfit_ds.model.architecture import ModelShape

H100 = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8, num_nodes=2)
A100 = resolve_cluster("bf16", device="A100-SXM-80GB", gpus_per_node=8)
SHAPE = ModelShape(6, 512, 8, 8, 1408, 256, 1024)
LARGE = ModelShape(32, 4096, 32, 32, 11008, 32000, 2048)
DEEP, TWICE = (ModelShape(layers, 512, 8, 8, 1408, 256, 1024) for layers in (12, 24))


def estimate(shape: ModelShape, strategy: Strategy, accumulation: int = 2, cluster=H100) -> MemoryEstimate:
    return estimate_memory(profile_decoder(shape, strategy.precision), strategy, cluster, accumulation=accumulation)


@pytest.mark.parametrize(
    ("stage", "weights", "master", "moments"),
    [(0, 4, 0, 8), (1, 4, 4 / 8, 8 / 8), (2, 4, 4 / 8, 8 / 8), (3, 4 / 8, 0, 8 / 8)],
)
def test_stages_shard_weights_master_weights_and_moments(stage, weights, master, moments):
    """Bytes a parameter on each of 8 GPUs, in fp32 (Rajbhandari et al., 2020); ZeRO-0 and 3 need no master weights."""
    parts, total = estimate(LARGE, Strategy(stage, 8, 1, True, "none", "bf16")).components, LARGE.parameters.total
    found = (parts.parameters, parts.master_weights, parts.optimizer_states)
    assert found == pytest.approx(tuple(each * total for each in (weights, master, moments)), rel=1e-3)


def test_offload_takes_states_from_the_device_to_the_host():
    found, total = estimate(LARGE, Strategy(3, 8, 1, True, "optimizer", "bf16")), LARGE.parameters.total
    assert (found.components.master_weights, found.components.optimizer_states) == (0, 0)
    # weights, two moments and gradients in fp32, and a pinned copy of these: of a rank's eighth
    assert found.host_bytes == 20 * math.ceil(total / 8)


def test_every_gradient_is_there_at_zero_1_and_a_share_at_zero_2():
    one, two = (estimate(LARGE, Strategy(stage, 8, 1, True, "none", "bf16")).components for stage in (1, 2))
    assert one.gradients >= 4 * LARGE.parameters.total
    # its share, and the largest tensor while it is reduced
    assert two.gradients <= 4 * (LARGE.parameters.total / 8 + 32000 * 4096) * 1.01


def test_at_zero_2_whole_tensors_lie_in_the_buffer_of_a_rank_whose_share_is_a_part_of_one():
    """Of 512 ranks one holds 120,000 of 61 million parameters, and three times the table of 8 million in gradients."""
    grouped = ModelShape(4, 1024, 16, 4, 2816, 8000, 512)
    found = estimate(grouped, Strategy(2, 512, 1, False, "none", "fp32"), accumulation=4).components
    assert found.gradients == pytest.approx(3 * 4 * 8000 * 1024, rel=0.01)


def test_the_peak_is_the_largest_moment_and_not_the_first():
    """Without accumulation gradients come with the backward pass: a model of few activations peaks with all of them."""
    found = estimate(LARGE, Strategy(0, 1, 1, True, "none", "bf16"), accumulation=1)
    assert found.peak_phase == "backward"
    assert found.components.gradients >= 4 * LARGE.parameters.total


@pytest.mark.parametrize("checkpointing", [False, True])
def test_saved_activations_grow_with_the_blocks(checkpointing):
    """With checkpointing every block keeps its input: 12 blocks more of tokens x width in bf16, at the least."""
    few, many = (estimate(s, Strategy(0, 1, 32, checkpointing, "none", "bf16")).components for s in (DEEP, TWICE))
    more = many.saved_activations - few.saved_activations
    inputs = 12 * 32 * 1024 * 512 * 2
    assert inputs <= more <= 2.1 * inputs if checkpointing else more > 8 * inputs


def test_cards_of_more_gpus_and_newer_ones_hold_more_beside_the_tensors():
    def nccl(num_gpus: int) -> int:
        margin = estimate(SHAPE, Strategy(3, num_gpus, 1, False, "none", "bf16")).margin
        return sum(line.num_bytes for line in margin if line.name == "NCCL")

    assert nccl(1) == 0 < nccl(2) < nccl(8) < nccl(16)
    alone = Strategy(0, 1, 1, False, "none", "bf16")
    hopper, ampere = (estimate(SHAPE, alone, cluster=each).components.library_workspaces for each in (H100, A100))
    assert hopper > ampere > 0

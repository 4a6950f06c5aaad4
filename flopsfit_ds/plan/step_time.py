"""Predicted seconds of an optimiser step: a model that ranks layouts and guesses how long a run takes."""

from __future__ import annotations

from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.memory import ModelProfile, Strategy

_PEAK_OF_A100 = 312e12
_OF_PEAK = 0.82
"""Of wide products of many tokens on an A100; this and the next three by least squares on logarithms of throughput."""
_FASTER = 0.31
"""Exponent by which a faster device falls behind its peak: H100 reaches .70 of what A100 does."""
_HALF_WIDTH = 700
_HALF_TOKENS = 900
_HIDDEN = 0.8
"""Of what can hide behind the computation. The public runs tell 0.8 from 1 hardly; they send in bf16 (FSDP)."""


def step_seconds(
    profile: ModelProfile, strategy: Strategy, accumulation: int, flops_per_sequence: float, cluster: Cluster
) -> float:
    """Predicted seconds of one optimiser step: computation, communication beside it, and the optimiser.

    The constants are set by half of 211 public runs on A100 and H100, of 125 M to 70 B parameters and 512 to 65,536
    tokens (`scripts/study_public_steps.py`); of the other half 75% are met within a tenth, 99% within a quarter.
    """
    sequences = strategy.micro_batch_size_per_gpu
    flops = flops_per_sequence * sequences * (4 / 3 if strategy.activation_checkpointing else 1)
    compute = flops / (cluster.peak_flops * _fraction_of_peak(profile, sequences, cluster))
    overhead = (30e-6 if cluster.kind == "cuda" else 60e-6) * profile.num_blocks * (2 + strategy.zero_stage)
    volume = _bytes_sent(profile, strategy, accumulation) / _bandwidth(cluster, strategy.num_gpus)
    busy = accumulation * max(compute, overhead)
    communication = max(volume - _HIDDEN * busy, (1 - _HIDDEN) * volume)
    return busy + communication + _offload_seconds(profile, strategy, accumulation, cluster)


def _fraction_of_peak(profile: ModelProfile, sequences: int, cluster: Cluster) -> float:
    tokens = sequences * profile.sequence_length
    if cluster.kind == "cpu":
        return tokens / (tokens + 64)  # the declared peak of a CPU slot is already what small models reach
    # a faster device reaches less of its peak; what slower ones than an A100 reach was not looked at
    device = _OF_PEAK * min(1.0, _PEAK_OF_A100 / cluster.peak_flops) ** _FASTER
    return device * profile.width / (profile.width + _HALF_WIDTH) * tokens / (tokens + _HALF_TOKENS)


def _bandwidth(cluster: Cluster, num_gpus: int) -> float:
    """Bytes a second of one GPU in a ring of all.

    Across nodes NCCL builds a ring for each network card, so that each carries a part of every GPU's traffic: 8 cards
    of 50 GB/s reach 340 GB/s (NVIDIA/nccl#1218), 8 of 12.5 GB/s reach 75 (NVIDIA/nccl#495).
    """
    link = cluster.intra_node_bandwidth
    if num_gpus > cluster.gpus_per_node:
        link = min(link, cluster.gpus_per_node * cluster.inter_node_bandwidth)
    return 0.7 * link


def _bytes_sent(profile: ModelProfile, strategy: Strategy, accumulation: int) -> float:
    """Bytes that one GPU sends in a step (Rajbhandari et al., 2020, section 7).

    It is in fp32, or what linear layers have of it in bf16; what ZeRO-1 and 2 gather after a step is fp32 anyway. Of
    weights in bf16 all is in bf16.

    ZeRO-3 gathers parameters for the forward and for the backward pass, and with checkpointing once more for the
    recomputation of a block, after which it lets them go.
    """
    if strategy.num_gpus == 1:
        return 0.0
    share = (strategy.num_gpus - 1) / strategy.num_gpus
    trainable, total = profile.num_params_trainable, profile.num_params
    narrow = profile.num_params_cast / total if strategy.communication == "bf16" else 0.0
    weight = strategy.weight_bytes
    item = weight - 2 * narrow
    if strategy.zero_stage == 0:
        return share * 2 * item * trainable
    if strategy.zero_stage == 1:
        return share * (2 * item * trainable + weight * trainable)
    if strategy.zero_stage == 2:
        return share * (accumulation * item * trainable + weight * trainable)
    gathers = 3 if strategy.activation_checkpointing else 2
    return share * accumulation * item * (gathers * total + trainable)


def _offload_seconds(profile: ModelProfile, strategy: Strategy, accumulation: int, cluster: Cluster) -> float:
    """Gradients of every micro-batch down a PCIe link, parameters up once a step, and AdamW on the host's cores."""
    if strategy.offload == "none":
        return 0.0
    share = profile.num_params_trainable / strategy.num_gpus
    on_node = min(strategy.num_gpus, cluster.gpus_per_node)
    return strategy.weight_bytes * share * (accumulation + 1) / 16e9 + share * on_node / 1e9

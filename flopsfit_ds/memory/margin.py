"""What a device holds beside the tensors: one line each, with its source."""

from __future__ import annotations

import functools

from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.base.units import MIB
from flopsfit_ds.memory.buckets import training_buckets
from flopsfit_ds.memory.types import MarginLine, Strategy

# Two handles have a workspace each: the forward thread's and autograd's. PyTorch gives a handle 8.125 MiB, and 32 MiB
# from Hopper on (aten/src/ATen/cuda/CublasHandlePool.cpp, getChosenWorkspaceSize).
_WORKSPACE_BYTES = 2 * 8_519_680
_WORKSPACE_BYTES_HOPPER = 2 * 32 * MIB
_HOPPER_OR_LATER = ("H100", "H200", "B200", "GH200", "GB200")
# Reported, none measured here. NVIDIA/nccl issue 964: 4 A100 over NVLink, 544 MB a communicator of two, 688 MB of more;
# issue 864: 1.6 GB for one communicator of a large job; issue 1685: 8 H100, 1.06 GB of context and NCCL together.
_CONTEXT_BYTES = 520 * MIB
_NCCL_PAIR_BYTES = 544 * MIB
_NCCL_NODE_BYTES = 688 * MIB
_NCCL_NODES_BYTES = 1600 * MIB
# DeepSpeed stops the host when more than two gathers, or two reductions, wait to be carried out, and then adds one
# (partitioned_param_coordinator.py, __max_ongoing_fetch_events; stage3.py, max_param_reduce_events).
_IN_FLIGHT = 3


def workspace_bytes(cluster: Cluster) -> int:
    """Bytes of cuBLAS workspaces inside PyTorch's allocator."""
    if cluster.kind == "cpu":
        return 0
    hopper = cluster.device_name.startswith(_HOPPER_OR_LATER) or cluster.device_name == "custom"
    return _WORKSPACE_BYTES_HOPPER if hopper else _WORKSPACE_BYTES


def delayed_free_bytes(
    strategy: Strategy,
    num_params: int,
    num_params_trainable: int,
    largest_tensor_params: int,
    block_largest_params: int,
) -> int:
    """Bound of what is free to the host, but not yet to the allocator, as a stream of the GPU still works on it.

    Tensors that another stream than their own works on (`record_stream`) count as allocated until the host lets go of
    them, and stay reserved until that stream is done. At ZeRO-3 these are gathered parameters, which compute uses
    after they were made on the stream of the gathers (partition_parameters.py, `free_param`), and gradients, which are
    copied and scattered on the stream of the reductions (stage3.py, `__add_grad_to_ipg_bucket`, `partition_grads`); the
    host may be three of either ahead. At ZeRO-2 it is a gradient larger than the bucket, while it is reduced beside
    the backward pass, which waits for the reduction before (stage_1_and_2.py, `average_tensor`). ZeRO-1 is configured
    to reduce on the stream of the backward pass. PyTorch waits for such tensors before it gives up for want of memory,
    so a run that lacks these bytes is slow, and does not fail.

    Args:
        strategy: How the run is laid out.
        num_params: Of the model.
        num_params_trainable: Of these, with a gradient.
        largest_tensor_params: Of the largest tensor.
        block_largest_params: Of the largest tensor of the repeated blocks.
    """
    if strategy.num_gpus == 1:
        return 0
    buckets = training_buckets(
        strategy.zero_stage, strategy.offload, num_params, num_params_trainable, strategy.deepspeed
    )
    if strategy.zero_stage == 3:
        # a gather stops with the tensor that fills the bucket
        gathered = _IN_FLIGHT * (buckets.prefetch_bucket_size + block_largest_params)
        reduced = _IN_FLIGHT * max(buckets.reduce_bucket_size, block_largest_params) if buckets.overlap_comm else 0
        return strategy.weight_bytes * (min(gathered, num_params) + min(reduced, num_params_trainable))
    if strategy.zero_stage == 2 and buckets.overlap_comm and largest_tensor_params > buckets.reduce_bucket_size:
        return strategy.weight_bytes * min(largest_tensor_params, num_params_trainable)
    return 0


@functools.lru_cache(maxsize=4096)
def allocator_margin(
    cluster: Cluster, num_gpus: int, memory_margin: float, delayed_bytes: int
) -> tuple[MarginLine, ...]:
    """The lines between allocated bytes and what must be free on the device.

    Args:
        cluster: The hardware.
        num_gpus: World size of the run.
        memory_margin: Share of the device's memory kept for fragmentation (the spec's `placement.memory_margin`).
        delayed_bytes: Of `delayed_free_bytes`.
    """
    fragmentation = MarginLine(
        "fragmentation",
        round(memory_margin * cluster.device_memory_bytes),
        "reserved",
        f"placement.memory_margin: {memory_margin:g} of the device's memory",
    )
    if cluster.kind == "cpu":
        return (fragmentation,)
    context = "chosen so that context and NCCL cover the 1.06 GB of 8 H100 in NVIDIA/nccl#1685"
    lines = [fragmentation]
    if delayed_bytes:
        source = "bound by the gathers and reductions that DeepSpeed lets run ahead (record_stream)"
        lines.append(MarginLine("frees delayed by streams", delayed_bytes, "reserved", source))
    lines.append(MarginLine("CUDA context", _CONTEXT_BYTES, "device", context))
    communicators = "two communicators: of all ranks, and DeepSpeed's copy of it (utils/groups.py)"
    if num_gpus > cluster.gpus_per_node:
        lines.append(MarginLine("NCCL", 2 * _NCCL_NODES_BYTES, "device", f"{communicators}, NVIDIA/nccl#864"))
    elif num_gpus > 1:
        num_bytes = _NCCL_PAIR_BYTES if num_gpus == 2 else _NCCL_NODE_BYTES
        lines.append(MarginLine("NCCL", 2 * num_bytes, "device", f"{communicators}, NVIDIA/nccl#964"))
    return tuple(lines)

"""Closed forms of a rank's peak memory under DeepSpeed 0.19, by component.

A step reaches its peak at one of a few moments; each is written down, and the largest counts. Sources: DeepSpeed's
`runtime/engine.py`, `runtime/zero/stage_1_and_2.py` and `stage3.py`, and what the simulation shows of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.base.presets import wants_stock_zero3
from flopsfit_ds.base.units import MIB
from flopsfit_ds.memory.buckets import ZeroBuckets, training_buckets
from flopsfit_ds.memory.casts import keeps_casts
from flopsfit_ds.memory.margin import allocator_margin, delayed_free_bytes, workspace_bytes
from flopsfit_ds.memory.profile import ALLOCATION_BYTES, ModelProfile
from flopsfit_ds.memory.types import MarginLine, MemoryComponents, MemoryEstimate, Phase, Strategy, assemble_estimate
from flopsfit_ds.model.head import LOGITS_AT_ONCE

ERROR_OF_DECODERS = (-0.04, 0.10)
"""Of the built-in decoder's peak beside the simulation of a GPU, as a share of the latter: lowest and highest that
tests/memory/test_closed_form.py holds them to, over 60 layouts drawn at random and ten that were hardest."""
_STAGE0_BUCKET = 500_000_000  # elements; engine.allreduce_gradients flattens gradients by so many, also on one GPU
_OPTIMIZER_GROUP = 1_000_000_000  # elements; sub_group_size
_MUON_GATHERS_BYTES = 256 * MIB
"""Of gradients and momenta that ZeRO-3 keeps from step to step (`_muon_allgather_max_cached_bytes` of stage3.py); each
is as large as a bucket, and up to four of them were seen in small models."""


def estimate_memory(
    profile: ModelProfile, strategy: Strategy, cluster: Cluster, memory_margin: float = 0.05, accumulation: int = 2
) -> MemoryEstimate:
    """Peak memory of the worst rank of a run.

    Args:
        profile: The model.
        strategy: How it is laid out.
        cluster: The hardware; decides the margin.
        memory_margin: Share of the device's memory kept for fragmentation.
        accumulation: Micro-batches of a step; with more than one, gradients live through the forward pass.
    """
    components, phase = peak_components(profile, strategy, workspace_bytes(cluster), accumulation)
    margin = profile_margin(profile, strategy, cluster, memory_margin)
    return assemble_estimate(components, phase, margin, host_bytes(profile, strategy), "closed-form")


def profile_margin(
    profile: ModelProfile, strategy: Strategy, cluster: Cluster, memory_margin: float
) -> tuple[MarginLine, ...]:
    """The lines between allocated bytes and what must be free on the device; arguments as of `estimate_memory`."""
    delayed = delayed_free_bytes(
        strategy,
        profile.num_params,
        profile.num_params_trainable,
        profile.largest_tensor_params,
        profile.block_largest_params,
    )
    return allocator_margin(cluster, strategy.num_gpus, memory_margin, delayed)


def host_bytes(profile: ModelProfile, strategy: Strategy) -> int:
    """Host memory of one rank: with offload fp32 weights, both moments, gradients and these as they were sent."""
    if strategy.offload == "none":
        return 0
    return (16 + strategy.weight_bytes) * math.ceil(profile.num_params_trainable / strategy.num_gpus)


class _Moment(NamedTuple):
    """One moment of a step, in bytes by component."""

    phase: Phase
    gathered: int = 0
    gradients: int = 0
    buckets: int = 0
    saved: int = 0
    loss: int = 0
    transients: int = 0

    @property
    def total(self) -> int:
        return sum(self[1:])  # all that are bytes; a plan of a thousand points asks a quarter of a million times


def peak_components(
    profile: ModelProfile,
    strategy: Strategy,
    workspaces: int,
    accumulation: int = 2,
    buckets: ZeroBuckets | None = None,
) -> tuple[MemoryComponents, Phase]:
    """Components at the largest moment, and its phase.

    Args:
        profile: The model.
        strategy: How it is laid out.
        workspaces: Bytes of library workspaces.
        accumulation: Micro-batches of a step.
        buckets: DeepSpeed's bucket sizes; without it, those the project trains with.
    """
    stage, world = strategy.zero_stage, strategy.num_gpus
    if buckets is None:
        params = profile.num_params, profile.num_params_trainable
        buckets = training_buckets(stage, strategy.offload, *params, strategy.deepspeed)
    trainable = profile.num_params_trainable
    share = math.ceil(trainable / world)
    offloaded = strategy.offload == "optimizer"
    if stage == 3:
        parameters = strategy.weight_bytes * math.ceil(profile.num_params / world)
        moments = _zero3_moments(profile, strategy, share, buckets)
    else:
        parameters = strategy.weight_bytes * profile.num_params
        moments = _replicated_moments(profile, strategy, share, accumulation, buckets)
    worst = max(moments, key=lambda moment: moment.total)
    gathers = _narrow_buckets(strategy, worst.buckets)
    if stage == 3 and profile.states is not None and profile.states.orthogonal_params:
        gathers += min(_MUON_GATHERS_BYTES, 4 * 4 * buckets.reduce_bucket_size)
    gaps = _gaps(profile, strategy)
    components = MemoryComponents(
        parameters=parameters + profile.buffer_bytes + gaps.parameters,
        gathered_parameters=worst.gathered,
        gradients=worst.gradients + gaps.gradients,
        master_weights=4 * share if _has_master_weights(strategy) else 0,
        optimizer_states=0 if offloaded else _state_bytes(profile, strategy, share) + gaps.states,
        communication_buckets=worst.buckets + gathers,
        saved_activations=worst.saved,
        logits_and_loss=worst.loss + gaps.loss,
        transients=worst.transients,
        library_workspaces=workspaces,
    )
    return components, worst.phase


class _Gaps(NamedTuple):
    """What small tensors take beyond their elements, in bytes by component."""

    parameters: int = 0
    gradients: int = 0
    states: int = 0
    loss: int = 0


def _gaps(profile: ModelProfile, strategy: Strategy) -> _Gaps:
    """Of a model whose tensors are counted one by one; at ZeRO-1 to 3 they lie in few flat buffers.

    At ZeRO-0 each trained parameter has a gradient, two moments and a count of steps of its own. A model of two towers
    of 64 channels, 11,457 parameters in nine tensors, takes 5% more by it than its elements do.
    """
    if not profile.num_tensors:
        return _Gaps()
    loss = 2 * ALLOCATION_BYTES  # a scalar, and its gradient
    if strategy.zero_stage == 0:
        counts = ALLOCATION_BYTES * profile.num_tensors
        of_each = profile.trained_gap_bytes
        return _Gaps(profile.gap_bytes, of_each, 2 * of_each + counts, loss)
    return _Gaps(parameters=profile.gap_bytes, loss=loss)


def _has_master_weights(strategy: Strategy) -> bool:
    """Whether a device holds fp32 weights beside its parameters; ZeRO-3 over fp32 does without (`mends/zero3.py`)."""
    if strategy.zero_stage < 3:
        return strategy.zero_stage > 0
    return strategy.offload == "none" and (strategy.precision == "bf16-pure" or wants_stock_zero3())


def _narrow_buckets(strategy: Strategy, wide: int) -> int:
    """Buckets beside those in fp32, where linear layers communicate in bf16: one of each, and what is cast into it."""
    if strategy.communication == "fp32" or strategy.zero_stage == 0:
        return 0
    return wide // 2 if strategy.zero_stage == 3 else wide


def _state_bytes(profile: ModelProfile, strategy: Strategy, share: int) -> int:
    """States of one rank; `share` is what it holds of the trained parameters beyond ZeRO-0."""
    states, stage, world = profile.states, strategy.zero_stage, strategy.num_gpus
    if states is None:
        return 8 * (profile.num_params_trainable if stage == 0 else share)
    if stage == 0:
        return states.state_bytes
    whole = states.orthogonal_params
    parted = math.ceil((states.state_bytes - 4 * whole) / world)
    if stage == 3 or not whole:
        return parted + 4 * math.ceil(whole / world)
    # ZeRO-1 and 2: the momenta of all matrices that reach into the share, and those of this step until it is sure
    return parted + 2 * 4 * sum(group.reaching_into_a_share(world) for group in states.groups if group.orthogonal)


class _LossBytes(NamedTuple):
    """What logits and loss take of a micro-batch, where they are held at once or found by chunks (`model/head.py`).

    Attributes:
        chunked: By chunks: the head's gradient is there before the backward pass begins.
        forward: At the end of the forward pass.
        backward: Most in the backward pass.
        handed_on: Once the head's gradient is there.
    """

    chunked: bool
    forward: int
    backward: int
    handed_on: int


def _loss_bytes(profile: ModelProfile, sequences: int) -> _LossBytes:
    item = 4 if profile.precision == "fp32" else 2
    if not profile.finds_loss_by_chunks or sequences * profile.logits_bytes <= item * LOGITS_AT_ONCE:
        logits = sequences * profile.logits_bytes
        return _LossBytes(False, logits, sequences * profile.loss_bytes, logits)
    to_hidden = sequences * profile.block_input_bytes  # in fp32
    narrow = to_hidden // 2 if profile.num_params_cast else to_hidden
    return _LossBytes(True, profile.chunk_bytes + narrow, narrow, narrow + to_hidden)


def _saved(profile: ModelProfile, strategy: Strategy, block_bytes: int) -> tuple[int, int]:
    """What is saved when the loss is reached, and what a block adds when it is recomputed; bytes of the micro-batch."""
    sequences = strategy.micro_batch_size_per_gpu
    outside = profile.outside_saved_bytes + profile.input_bytes + sequences * profile.pair_saved_bytes
    if strategy.activation_checkpointing:
        kept = profile.num_blocks_saved * profile.block_input_bytes
        return sequences * (kept + outside), sequences * (block_bytes - profile.block_input_bytes) * bool(kept)
    return sequences * (profile.num_blocks_saved * block_bytes + outside), 0


def _transient_bytes(profile: ModelProfile, sequences: int) -> int:
    """Most that the backward pass holds above what was saved, bytes of the micro-batch."""
    return sequences * (profile.block_transient_bytes + sequences * profile.pair_transient_bytes)


def _replicated_moments(
    profile: ModelProfile, strategy: Strategy, share: int, accumulation: int, buckets: ZeroBuckets
) -> list[_Moment]:
    """ZeRO-0, 1 and 2: every rank holds all parameters."""
    stage, sequences, item = strategy.zero_stage, strategy.micro_batch_size_per_gpu, strategy.weight_bytes
    checkpointing = strategy.activation_checkpointing
    trainable = profile.num_params_trainable
    saved, recomputed = _saved(profile, strategy, profile.block_saved_bytes)
    bucket = 0 if stage == 0 else item * buckets.reduce_bucket_size * (2 if buckets.overlap_comm else 1)
    partition = _gradients_of_partition(profile, strategy, share)
    earlier = 0 if accumulation == 1 else item * trainable if stage < 2 else partition
    casts = 2 * (profile.head_params if checkpointing and profile.num_params_cast else profile.num_params_cast)
    block_casts = 2 * profile.block_params if checkpointing and profile.num_params_cast else 0
    head, narrow = profile.head_params, (2 if profile.num_params_cast else 0)
    in_block = item * min(profile.block_largest_params, trainable)
    if stage == 2:  # a gradient in flight beside the partition's, which are copied into a buffer of their own
        at_last_block = at_first_block = earlier + partition + in_block
    else:
        before = profile.last_gradient_params + profile.block_params - profile.block_largest_params
        at_last_block = earlier or item * min(head + profile.block_largest_params, trainable)
        at_first_block = earlier or max(at_last_block, item * (trainable - before))
    transient = _transient_bytes(profile, sequences)
    loss = _loss_bytes(profile, sequences)
    of_head = 4 * min(head, trainable)
    outside = sequences * profile.outside_saved_bytes
    last_saved = sequences * profile.block_saved_bytes * bool(profile.num_blocks_saved)
    # until the forward pass ends autocast keeps the casts of all trained weights, also where blocks are recomputed
    all_casts = 2 * (min(profile.num_params_cast, trainable) if checkpointing else profile.num_params_cast)
    in_forward = sequences * profile.block_forward_bytes * checkpointing
    moments = [
        _Moment("forward", all_casts, earlier + of_head * loss.chunked, 0, saved, loss.forward, 0),
        _Moment("forward", max(0, all_casts - narrow * head), earlier, 0, saved - outside, 0, in_forward),
        _Moment("backward", casts, earlier + of_head * loss.chunked, 0, saved, loss.backward, 0),
        _Moment("backward", casts, earlier + of_head, 0, saved, loss.handed_on, narrow * head * (not loss.chunked)),
        _Moment(
            "backward",
            (casts - narrow * head if not checkpointing else 0) + block_casts,
            at_last_block,
            bucket,
            saved + recomputed - outside,
            0,
            transient,
        ),
        _Moment("backward", 2 * profile.block_params * bool(narrow), at_first_block, bucket, last_saved, 0, transient),
    ]
    if narrow and profile.finds_loss_by_chunks and keeps_casts(stage, accumulation, checkpointing):
        # in all micro-batches but the last, every copy stays to the end; ZeRO-1 reduces after the last one only
        waiting, before_last = (bucket if stage == 2 else 0), (earlier if accumulation > 2 else 0)
        grown = max(before_last, at_first_block if stage == 2 else 4 * trainable)
        moments += [
            _Moment("backward", all_casts, at_last_block, waiting, saved - outside, 0, transient),
            _Moment("backward", all_casts, grown, waiting, last_saved, 0, transient),
        ]
    table = item * min(profile.largest_tensor_params, trainable)
    batch = sequences * profile.input_bytes  # the loop's own, until the step ends
    tied = item * min(profile.tied_params, trainable)  # the head's part of its gradient, which waits for the table's
    if tied and stage < 2:  # both parts and their sum, beside the sum of earlier micro-batches
        moments.append(_Moment("backward", 0, item * trainable, bucket, batch, 0, tied * (3 if earlier else 2)))
    if stage == 0:
        flat = 4 * min(trainable, _STAGE0_BUCKET + profile.largest_tensor_params)
        moments.append(_Moment("backward", 0, 4 * trainable, flat, batch, 0, 0))
    else:
        moments.append(_Moment("start", 0, 0, item * trainable - 12 * share, 0, 0, 0))
        gradients = item * trainable + partition if stage == 1 else earlier + partition + table
        moments.append(_Moment("backward", 0, gradients, bucket, batch, 0, tied * (stage == 2)))
        flattened = item * share if item < 4 else 0  # before it is widened; what is wide is a view
        moments.append(_Moment("step", 0, partition, 0, batch, 0, 4 * share + flattened))
    if stage == 2:  # the head's gradient is reduced before the blocks' backward pass
        gradients = earlier + partition + of_head
        moments.append(_Moment("backward", casts - narrow * head, gradients, bucket, saved, 0, 0))
    return moments


def _gradients_of_partition(profile: ModelProfile, strategy: Strategy, share: int) -> int:
    """Bytes of the buffer that ZeRO-1 and 2 copy gradients into: of all tensors that reach into a rank's partition.

    Source: `copy_grads_in_partition` of stage_1_and_2.py sums whole tensors.
    """
    item = strategy.weight_bytes
    if strategy.num_gpus == 1:
        return item * share
    if profile.states is not None and profile.states.groups:
        return item * sum(group.reaching_into_a_share(strategy.num_gpus) for group in profile.states.groups)
    reaching = max(share + profile.block_largest_params, profile.largest_tensor_params)
    return item * min(reaching, profile.num_params_trainable)


def _zero3_moments(profile: ModelProfile, strategy: Strategy, share: int, buckets: ZeroBuckets) -> list[_Moment]:
    """ZeRO-3: parameters are gathered for use, and gradients live in a buffer of this rank's share."""
    sequences, item = strategy.micro_batch_size_per_gpu, strategy.weight_bytes
    saved, recomputed = _saved(profile, strategy, profile.block_saved_bytes_zero3)
    narrow = 2 if profile.num_params_cast else 0
    whole_in_use = item * profile.num_params if strategy.num_gpus > 1 else 0  # one rank's share is used where it lies
    in_block = profile.block_params if strategy.activation_checkpointing else profile.block_largest_params
    head, bucket = profile.head_params, item * buckets.reduce_bucket_size
    gradients = 0 if strategy.offload == "optimizer" else item * share
    # a gather ahead ends with the tensor that fills it; none begins while as much is there as may live
    ahead, largest = buckets.prefetch_bucket_size, profile.block_largest_params
    alive = buckets.max_live_parameters + largest
    beside_head = alive if head < buckets.max_live_parameters else 0
    at_loss = min(whole_in_use, item * (beside_head + head * bool(beside_head)))
    at_head = min(whole_in_use, item * (beside_head + head))
    at_block = min(whole_in_use, item * max(in_block + ahead + largest * (ahead > largest), alive))
    if profile.num_tensors:  # the largest may be there twice, as it is copied out of what was gathered with it
        at_block = min(whole_in_use, at_block + item * largest)
    if strategy.num_gpus > 1 and not strategy.activation_checkpointing:  # beside what is gathered anew for the backward
        held = item * profile.held_params
        at_loss, at_head, at_block = at_loss + held, at_head + held, at_block + held
    loss = _loss_bytes(profile, sequences)
    of_head = 4 * head
    table = item * profile.largest_tensor_params
    group = 4 * min(share, _OPTIMIZER_GROUP)
    batch = sequences * profile.input_bytes  # the loop's own, until the step ends
    if loss.chunked:
        at_end = _Moment("forward", at_head, gradients + of_head, bucket, saved, loss.forward, narrow * head)
    else:
        at_end = _Moment("backward", at_loss, gradients, bucket, saved, loss.backward, 0)
    return [
        at_end,
        _Moment(
            "backward", at_head, gradients + of_head, bucket, saved, loss.handed_on, narrow * head * (not loss.chunked)
        ),
        _Moment(
            "backward",
            at_block,
            gradients + item * profile.block_largest_params,
            bucket,
            saved + recomputed - sequences * profile.outside_saved_bytes,
            0,
            _transient_bytes(profile, sequences) + narrow * profile.block_largest_params,
        ),
        _Moment("backward", table, gradients + table, bucket, batch, 0, 2 * item * profile.tied_params),
        _Moment("step", 0, gradients, bucket, batch, 0, group),
    ]

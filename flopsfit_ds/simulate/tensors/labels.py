"""Says of each allocation what it holds, by watching the engine: hooks and wrappers that change nothing it does."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from flopsfit_ds.simulate.tensors.tracker import Allocation, LiveMemory, Peak
from flopsfit_ds.train.model import cross_entropy

_GATHER = ("fetch_sub_module",)
_REDUCE = (
    "reduce_independent_p_g_buckets_and_remove_grads",
    "reduce_ready_partitions_and_remove_grads",
    "overlapping_partition_gradients_reduce_epilogue",
    "independent_gradient_partition_epilogue",
    "reduce_gradients",
    "setup_buckets",
)


def watch_engine(engine: Any, tracker: LiveMemory) -> None:
    """Mark what collectives allocate, and gradients before they are reduced."""
    optimizer = engine.optimizer
    for name in _REDUCE:
        _wrap(optimizer, name, tracker, "communication_buckets")
    for name in ("buffered_allreduce_fallback",):
        _wrap(engine, name, tracker, "communication_buckets")
    coordinator = getattr(getattr(optimizer, "parameter_offload", None), "get_param_coordinator", None)
    if coordinator is not None:
        for name in _GATHER:
            _wrap(coordinator(), name, tracker, "gathered_parameters")


def _wrap(owner: Any, name: str, tracker: LiveMemory, category: str) -> None:
    method = getattr(owner, name, None)
    if method is None:
        return

    @functools.wraps(method)
    def inside(*args: Any, **kwargs: Any) -> Any:
        for argument in args:
            if isinstance(argument, torch.nn.Parameter) and argument.grad is not None:
                tracker.label(argument.grad, "gradients")
        with tracker.scope(category):
            return method(*args, **kwargs)

    setattr(owner, name, inside)


def watch_loss(model: torch.nn.Module, tracker: LiveMemory) -> None:
    """From the model's output to the gradient of it, everything is logits and loss; so is what a head makes of them."""
    for name in ("mean_loss", "token_losses"):
        _wrap(cross_entropy, name, tracker, "logits_and_loss")

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        for tensor in tensors:
            tracker.label(tensor, "logits_and_loss")
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: tracker.close_scope("logits_and_loss"))
        tracker.open_scope("logits_and_loss")

    model.register_forward_hook(after)


def label_state(engine: Any, tracker: LiveMemory) -> None:
    """Mark what lives from step to step: parameters, master weights, states of the optimiser, gradients, buckets."""
    for parameter in engine.module.parameters():
        if parameter.numel():
            gathered = getattr(parameter, "ds_tensor", None) is not None and not getattr(parameter, "ds_persist", False)
            tracker.label(parameter.data, "gathered_parameters" if gathered else "parameters")
        partition = getattr(parameter, "ds_tensor", None)
        if partition is not None:
            tracker.label(partition, "parameters")
        if parameter.grad is not None:
            tracker.label(parameter.grad, "gradients")
    for buffer in engine.module.buffers():
        tracker.label(buffer, "parameters")
    optimizer = engine.optimizer
    for tensor in _tensors_of(optimizer, ("bit16_groups_flat", "fp16_partitioned_groups_flat")):
        tracker.label(tensor, "parameters")
    for tensor in _tensors_of(optimizer, ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")):
        if tracker.category_of(tensor) != "parameters":
            tracker.label(tensor, "master_weights")
        if tensor.grad is not None:
            tracker.label(tensor.grad, "gradients")
    base = getattr(optimizer, "optimizer", optimizer)
    for state in base.state.values():
        for tensor in tree_leaves(state):
            if isinstance(tensor, torch.Tensor):
                tracker.label(tensor, "optimizer_states")
    for tensor in _tensors_of(
        optimizer,
        (
            "averaged_gradients",
            "grad_partitions_flat_buffer",
            "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition",
            "all_grad_tensors",
        ),
    ):
        tracker.label(tensor, "gradients")
    for bucket in getattr(optimizer, "ipg_buckets", {}).values():
        for tensor in tree_leaves(vars(bucket)):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, torch.nn.Parameter):
                tracker.label(tensor, "communication_buckets")


def _tensors_of(owner: Any, names: tuple[str, ...]) -> Iterator[torch.Tensor]:
    for name in names:
        for leaf in tree_leaves(getattr(owner, name, None)):
            if isinstance(leaf, torch.Tensor):
                yield leaf


def components_of(peak: Peak) -> dict[str, int]:
    """Bytes at a peak by category."""
    totals: dict[str, int] = {}
    for allocation in peak.live:
        category = allocation.category or _guess(allocation, peak)
        totals[category] = totals.get(category, 0) + allocation.num_bytes
    return totals


def _guess(allocation: Allocation, peak: Peak) -> str:
    """Of what nothing else is known: what outlives the forward pass is saved, what the backward pass makes is not."""
    if allocation.phase == "start":
        return "parameters" if peak.phase == "start" else "communication_buckets"
    if allocation.phase == "forward" or (allocation.phase == "backward" and allocation.recorded):
        return "saved_activations"
    return "transients"

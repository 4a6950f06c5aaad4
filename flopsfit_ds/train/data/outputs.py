"""What models return, and trees of tensors of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree

from flopsfit_ds.model.loss_traits import LossTraits

_HALF = (torch.bfloat16, torch.float16)


def call_model(model: Any, inputs: Any) -> Any:
    """`model(inputs)`; a dictionary is passed as keyword arguments, a tuple or list as positional ones.

    Outputs in half precision are handed on in fp32: autocast ends with the forward pass, and in bf16 a user's loss
    would have three digits.
    """
    if isinstance(inputs, dict):
        outputs = model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    return map_tensors(lambda tensor: tensor.float() if tensor.dtype in _HALF else tensor, outputs)


def logits_of(outputs: Any) -> Any:
    """The logits of what a model returns: its `.logits`, where it has them, else all of it."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    named = outputs.get("logits") if isinstance(outputs, Mapping) else None
    return getattr(outputs, "logits", outputs) if named is None else named


def outputs_of(model: Any, inputs: Any, traits: LossTraits) -> Any:
    """What a loss with these traits is handed."""
    outputs = call_model(model, inputs)
    return logits_of(outputs) if traits.takes_logits else outputs


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """A tree of tensors, dataclasses included, with each tensor replaced."""
    if dataclasses.is_dataclass(tree) and type(tree) not in _pytree.SUPPORTED_NODES:
        _pytree.register_dataclass(type(tree))
    return _pytree.tree_map_only(torch.Tensor, function, tree)


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """The tensors of a tree, in order."""
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def num_samples(targets: Any) -> int:
    """Rows of a collated tree."""
    return len(_pytree.tree_leaves(targets)[0])


def rows_of(tree: Any, rows: slice, size: int) -> Any:
    """Some samples of a collated tree; a tensor that has no row a sample belongs to the whole batch and is kept."""

    def chosen(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[rows] if tensor.ndim > 0 and len(tensor) == size else tensor

    return map_tensors(chosen, tree)


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a tree of tuples, lists and dictionaries, moved to a device; it is read on the CPU.

    To a GPU it goes by pinned memory, beside what is computed: from other memory CUDA may wait for the stream first.
    PyTorch gives a pinned block to nobody else before the copy out of it is done.
    """
    if device.type == "cpu":
        return batch

    def move(tensor: torch.Tensor) -> torch.Tensor:
        # what is not contiguous PyTorch copies on the host anyway, into memory that is not pinned
        pinned = device.type == "cuda" and tensor.is_cpu and tensor.is_contiguous()
        return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)

    return _pytree.tree_map_only(torch.Tensor, move, batch)

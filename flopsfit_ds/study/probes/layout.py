"""Whether a class in training mode mixes the samples of a batch, or remembers those it saw: then layouts differ.

Dropout is replaced by its expectation, so that a class that draws for nothing else is compared exactly. One that still
draws is compared with itself by the same draws: the outputs of a sample must not change with the others' inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flopsfit_ds.model.loss_traits import CountedEntries
from flopsfit_ds.train.data.means import close, sample_weights, weighted_mean
from flopsfit_ds.train.data.outputs import call_model, map_tensors, num_samples, rows_of, tensors_of
from flopsfit_ds.train.seeding import seeded

_SEED = 0xD3A3  # any, and always the same
_TOLERANCE = 2e-6
"""Of the largest value: some roundings of fp32. What is compared is found by the same kernels from the same shapes."""
_aten = torch.ops.aten


class _ExpectedDropout(TorchDispatchMode):
    """Each element is kept with certainty, scaled as its expectation asks."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is _aten.bernoulli_.float:
            return args[0].fill_(args[1] if len(args) > 1 else 0.5)
        if operation is _aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        return operation(*args, **(kwargs or {}))


def mixes_samples(
    model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], torch.Tensor], counted: CountedEntries | None
) -> str | None:
    """What a class does in training mode that makes a loss depend on micro-batch and GPUs; None where nothing is seen.

    Args:
        model: With weights; its state is put back.
        batch: A few samples, collated (inputs, targets).
        loss: `loss(model, batch)`, a scalar.
        counted: The targets that the loss is a mean over.
    """
    name = type(model).__name__
    norms = sorted(
        {type(each).__name__ for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)}
    )
    if norms:
        return f"{name} normalises over the batch ({', '.join(norms)})"
    try:
        with _ExpectedDropout(), torch.no_grad():
            if _draws(_copy(model), batch, loss):
                if _outputs_differ(_copy(model), batch):
                    return f"{name} mixes the samples of a batch"
            elif _parts_differ(_copy(model), batch, loss, counted):
                return f"{name} normalises over the batch"
            if _remembers(model, batch, loss):
                return f"{name} keeps something of the samples that it saw, other than its weights, and makes use of it"
    except (RuntimeError, ValueError):  # batch normalisation over ranks needs ranks
        return None
    return None


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).train()


def _draws(model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], torch.Tensor]) -> bool:
    with seeded(_SEED):
        return loss(copy.deepcopy(model), batch).item() != loss(copy.deepcopy(model), batch).item()


def _parts_differ(
    model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], torch.Tensor], counted: CountedEntries | None
) -> bool:
    """Whether a batch has another loss than its parts."""
    size = num_samples(batch[1])
    parts = [rows_of(batch, rows, size) for rows in (slice(0, size // 2), slice(size // 2, size))]
    losses = torch.stack([loss(copy.deepcopy(model), part) for part in parts])
    counts = torch.stack([sample_weights(part, num_samples(part[1]), counted).sum() for part in parts])
    whole = loss(model, batch).item()
    return not close(whole, weighted_mean(losses, counts), weighted_mean(losses.abs(), counts))


def _outputs_differ(model: nn.Module, batch: Any) -> bool:
    """Whether the outputs of the first sample change where the others are exchanged for it, by the same draws."""
    size = num_samples(batch[1])
    alike = map_tensors(
        lambda tensor: tensor[:1].expand_as(tensor).clone() if _has_rows(tensor, size) else tensor, batch[0]
    )
    first = []
    for inputs in (batch[0], alike):
        with seeded(_SEED):
            outputs = tensors_of(call_model(copy.deepcopy(model), inputs))
        first.append([tensor[0] for tensor in outputs if _has_rows(tensor, size) and tensor.is_floating_point()])
    return any(_differ(one, other) for one, other in zip(*first, strict=False))


def _remembers(model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], torch.Tensor]) -> bool:
    """Whether the loss of a batch depends on which samples the class has seen before."""
    size = num_samples(batch[1])
    found = []
    for rows in (slice(0, size // 2), slice(size // 2, size)):
        seen = _copy(model)
        part = rows_of(batch, rows, size)
        with seeded(_SEED):
            call_model(seen, part[0])
        for mode in (seen.train(), seen.eval()):
            with seeded(_SEED):
                found.append(loss(mode, batch))
    return _differ(found[0], found[2]) or _differ(found[1], found[3])


def _has_rows(tensor: torch.Tensor, size: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == size


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() > _TOLERANCE * one.abs().max())

"""What planning must know of any module: parameters, exact FLOPs and saved activations, from its meta-device twin."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree
from torch.utils.flop_counter import FlopCounterMode

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.memory import ModelProfile

LOOKED_AT_SAMPLES = 2
"""Of the batch that a class is looked at with: batch normalisation refuses a single one."""
_SHOWN_NAMES = 12


@dataclass(frozen=True)
class ClassMeasurement:
    """A user's class at one size.

    Attributes:
        num_params: All parameters, each tensor once.
        num_params_trainable: With a gradient.
        num_params_embedding: In `nn.Embedding` tables, and in an output head of as many rows as the largest of them.
        forward_flops_per_sample: Counted by `torch.utils.flop_counter`; None where the forward pass cannot run on the
            meta device.
        spared_flops_per_sample: FLOPs of the backward pass that freezing saves.
        batch_norms: Names of the types of its modules that normalise over the batch.
        profile: What the memory estimate needs.
        problem: Why the forward pass could not be looked at; None where it could.
    """

    num_params: int
    num_params_trainable: int
    num_params_embedding: int
    forward_flops_per_sample: int | None
    spared_flops_per_sample: int
    batch_norms: tuple[str, ...]
    profile: ModelProfile
    problem: str | None


def build_on_meta(model_class: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """The module without weights.

    Raises:
        SpecError: The constructor refuses the arguments.
    """
    try:
        with torch.device("meta"):
            model = model_class(**arguments)
    except Exception as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise SpecError(f"{model_class.__name__}({shown}) cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise SpecError(f"{model_class.__name__} is no torch.nn.Module")
    return model


def profile_class(
    model_class: type[nn.Module],
    arguments: Mapping[str, Any],
    *,
    samples: Any,
    loss: Callable[[nn.Module, Any], torch.Tensor],
    precision: Literal["fp32", "bf16"],
    frozen_parameters: tuple[str, ...] = (),
    tokens_per_sample: int,
) -> ClassMeasurement:
    """Measure a class without weights and without data.

    Activations are measured in fp32; under bf16 autocast they are no larger, so the estimate stays on the safe side.

    Args:
        model_class: The class.
        arguments: Its constructor's arguments.
        samples: A batch of `LOOKED_AT_SAMPLES`: a tree of tensors.
        loss: `loss(model, batch)`.
        precision: Of the sweep.
        frozen_parameters: Glob patterns of parameters that are not trained.
        tokens_per_sample: Predictions a sample counts as.

    Raises:
        SpecError: The class cannot be built, or has no parameters.
        PlanError: The loss is no scalar, a pattern matches nothing, nothing is left to train, or what freezing spares
            cannot be counted.
    """
    model = build_on_meta(model_class, arguments)
    parameters = list(model.parameters())
    if not parameters:
        raise SpecError(f"{model_class.__name__} has no parameters")
    batch = _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), samples)
    _freeze(model, frozen_parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    if trainable == 0:
        raise PlanError("training.frozen_parameters: nothing is left to train")
    called: list[nn.Module] = []
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(lambda module, _inputs, _output: called.append(module)) for module in linear]
    flops, saved, problem = _look_at_forward(model, batch, loss)
    for hook in hooks:
        hook.remove()
    spared = _spared_flops(model, batch, loss) if problem is None else 0
    num_params = sum(parameter.numel() for parameter in parameters)
    profile = _class_profile(model, batch, saved, flops, precision, tokens_per_sample)
    embedding = _embedding_params(model, called[-1] if called else None)
    norms = {type(module).__name__ for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    return ClassMeasurement(num_params, trainable, embedding, flops, spared, tuple(sorted(norms)), profile, problem)


def _embedding_params(model: nn.Module, last: nn.Module | None) -> int:
    """Parameters of tables of the vocabulary, each tensor once; the layer called last may be the output head."""
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    if tables and isinstance(last, nn.Linear) and last.out_features == max(len(table) for table in tables):
        tables.add(last.weight)
    return sum(table.numel() for table in tables)


def _freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            raise PlanError(
                f"training.frozen_parameters: {pattern!r} matches no parameter; there are "
                f"{', '.join(list(parameters)[:_SHOWN_NAMES])}, ..."
            )
        for name in names:
            parameters[name].requires_grad_(False)


def _spared_flops(model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], torch.Tensor]) -> int:
    """FLOPs of the backward pass, a sample, that are spared because some parameters have no gradient."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]

    def backward_flops(trained: bool) -> int:
        for parameter in frozen:
            parameter.requires_grad_(trained)
        value = loss(model, batch)
        with FlopCounterMode(display=False) as counter:
            value.backward()
        return counter.get_total_flops() // LOOKED_AT_SAMPLES

    try:
        return backward_flops(True) - backward_flops(False) if frozen else 0
    except Exception as error:
        raise PlanError(
            f"{type(model).__name__}: the backward pass cannot be looked at without weights ({type(error).__name__}: "
            f"{error}), so what training.frozen_parameters spares cannot be counted"
        ) from error


def _class_profile(
    model: nn.Module, batch: Any, saved: int, flops: int | None, precision: Literal["fp32", "bf16"], tokens: int
) -> ModelProfile:
    """The profile of a module of which nothing is known but its parameters, its forward pass and what that saves."""
    parameters = list(model.parameters())
    num_params = sum(parameter.numel() for parameter in parameters)
    blocks = repeated_blocks(model)
    num_blocks, block_params = len(blocks), max(sum(p.numel() for p in block.parameters()) for block in blocks)
    largest = max(parameter.numel() for parameter in parameters)
    input_bytes = sum(t.numel() * t.element_size() for t in _pytree.tree_leaves(batch) if isinstance(t, torch.Tensor))
    return ModelProfile(
        name=type(model).__name__,
        num_params=num_params,
        num_params_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        num_params_cast=num_params if precision == "bf16" else 0,
        head_params=0,
        largest_tensor_params=largest,
        block_params=block_params,
        block_largest_params=max((p.numel() for block in blocks for p in block.parameters()), default=0),
        num_blocks=num_blocks,
        num_blocks_saved=num_blocks,
        width=max(min(parameter.shape) for parameter in parameters if parameter.ndim >= 1),
        sequence_length=tokens,
        precision=precision,
        forward_flops_per_sequence=flops if flops is not None else 2 * num_params * tokens,
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        block_saved_bytes=saved // num_blocks,
        block_saved_bytes_zero3=saved // num_blocks,
        # nothing is known of checkpoints inside a user's class: they save nothing
        block_input_bytes=saved // num_blocks,
        block_transient_bytes=2 * saved // num_blocks,
        outside_saved_bytes=0,
        loss_bytes=0,
        logits_bytes=0,
        input_bytes=input_bytes // LOOKED_AT_SAMPLES,
    )


def _look_at_forward(
    model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], torch.Tensor]
) -> tuple[int | None, int, str | None]:
    """FLOPs of the forward pass and bytes it saves for the backward pass, a sample, and what went wrong.

    Raises:
        PlanError: The loss is no scalar.
    """
    weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    try:
        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            value = loss(model, batch)
    except Exception as error:
        return None, 0, f"{type(error).__name__}: {error}".splitlines()[0]
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        found = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"{value!r}"
        raise PlanError(f"the loss function must return a scalar tensor; it returned {found}: take its mean")
    saved = sum(storage.nbytes() for storage in kept.values())
    return counter.get_total_flops() // LOOKED_AT_SAMPLES, saved // LOOKED_AT_SAMPLES, None


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The entries of the longest `ModuleList` or `Sequential`; the model itself where it has neither."""
    lists = [module for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    return list(max(lists, key=len, default=())) or [model]

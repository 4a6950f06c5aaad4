"""What planning must know of any module: parameters, exact FLOPs and saved activations, without weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.base.presets import Precision
from flopsfit_ds.memory import ModelProfile
from flopsfit_ds.memory.profile import ALLOCATION_BYTES
from flopsfit_ds.memory.states import optimizer_memory
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan
from flopsfit_ds.simulate.counting.leaves import Entered, leaf_modules
from flopsfit_ds.simulate.counting.look import Looker, Seen
from flopsfit_ds.simulate.counting.pairs import saved_for_a_pair
from flopsfit_ds.simulate.counting.shares import active_params, matrix_params, uncounted_matrices
from flopsfit_ds.train.optimizers.kinds import state_tensors

LOOKED_AT_SAMPLES = 2
"""Of the batch that a class is looked at with: batch normalisation refuses a single one."""
_SHOWN_NAMES = 12  # in an error of one line


@dataclass(frozen=True)
class ClassMeasurement:
    """A user's class at one size.

    Attributes:
        num_params: All parameters, each tensor once.
        num_params_trainable: With a gradient.
        num_params_embedding: In `nn.Embedding` tables, and in an output head of as many rows as the largest of them.
        num_params_active: That a token makes use of, by the class's own attribute `num_active_parameters` where it has
            one; None where that is not known.
        num_params_matrices: In matrices that something is multiplied by, an output head among them; None where the step
            could not be looked at.
        flops_per_sample: Of forward and backward pass; None where they cannot be counted.
        untrained: Names of parameters that are to be trained and that the loss gives no gradient, whatever the batch.
        uneven: Names of parameters that a batch may pass by, so that ranks would reduce different gradients.
        leaves: Names of the modules around these that ZeRO-3 trains when it gathers them whole; none where there are no
            such modules.
        was_seen: Whether a whole step could be looked at, in all the ways that it may take.
        unknown_masks: Whether attention has a mask whose values are not known.
        profile: What the memory estimate needs.
        problem: Why FLOPs cannot be counted; None where they are.
    """

    num_params: int
    num_params_trainable: int
    num_params_embedding: int
    num_params_active: int | None
    num_params_matrices: int | None
    flops_per_sample: int | None
    untrained: tuple[str, ...]
    uneven: tuple[str, ...]
    leaves: tuple[str, ...]
    was_seen: bool
    unknown_masks: bool
    profile: ModelProfile
    problem: str | None


def count_parameters(model_class: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> int:
    """All parameters, each tensor once.

    Raises:
        SpecError: The constructor refuses the arguments, or builds no module.
    """
    return sum(parameter.numel() for parameter in build_without_weights(model_class, arguments).parameters())


def build_without_weights(model_class: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """The model, its parameters without memory.

    Raises:
        SpecError: The constructor refuses the arguments, or builds no module.
    """
    try:
        with torch.device("meta"):
            model = model_class(**arguments)
    except Exception:  # a constructor that computes with values
        model = _build(Looker(), model_class, arguments)
    if not isinstance(model, nn.Module):
        raise SpecError(f"{model_class.__name__} is no torch.nn.Module")
    return model


def _build(looker: Looker, model_class: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return looker.build(model_class, arguments)
    except Exception as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise SpecError(f"{model_class.__name__}({shown}) cannot be built: {type(error).__name__}: {error}") from error


def profile_class(
    model_class: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    *,
    samples: Any,
    loss: Callable[[nn.Module, Any], torch.Tensor],
    precision: Precision,
    frozen_parameters: tuple[str, ...] = (),
    tokens_per_sample: int,
    optimizer: OptimizerPlan | None = None,
    recomputes_blocks: Callable[[nn.Module], bool] = lambda _model: False,
    looks_at_pairs: bool = False,
) -> ClassMeasurement:
    """Measure a class without weights: one training step on tensors without memory.

    Activations are measured in fp32; under bf16 autocast they are no larger, so the estimate stays on the safe side.
    Control flow that depends on a choice among weights' values (the experts of a token), or on the batch's, is looked
    at twice: with choices drawn at random, and with all of them and all tokens alike.

    Args:
        model_class: The class.
        arguments: Its constructor's arguments.
        samples: A batch of `LOOKED_AT_SAMPLES`: a tree of tensors.
        loss: `loss(model, batch)`.
        precision: Of the sweep.
        frozen_parameters: Glob patterns of parameters that are not trained.
        tokens_per_sample: Predictions a sample counts as.
        optimizer: What trains it; None for AdamW.
        recomputes_blocks: Whether training can recompute the blocks of a model in its backward pass.
        looks_at_pairs: Whether to look for what grows with the square of a batch, at the price of three more looks.

    Raises:
        SpecError: The class cannot be built, or has no parameters.
        PlanError: The loss is no scalar or has no gradient, a pattern matches nothing, nothing is left to train, a
            parameter is complex, or the count of active parameters that the class gives by hand cannot be right.
    """
    looker = Looker()
    model = _build(looker, model_class, arguments)
    parameters = dict(model.named_parameters())
    if not parameters:
        raise SpecError(f"{model_class.__name__} has no parameters")
    if complex_names := [name for name, parameter in parameters.items() if parameter.is_complex()]:
        raise PlanError(
            f"{model_class.__name__}: {complex_names[0]} holds complex numbers, which DeepSpeed cannot reduce over "
            "ranks; hold real ones, two in the last dimension, and use torch.view_as_complex of them"
        )
    freeze_by_name(model, frozen_parameters)
    trainable = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    if trainable == 0:
        raise PlanError("training.frozen_parameters: nothing is left to train")
    called: list[nn.Module] = []
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(lambda module, _inputs, _output: called.append(module)) for module in linear]
    entered = Entered(model)
    blocks = repeated_blocks(model) if recomputes_blocks(model) else []
    seen, problem = _try_to_look(looker, model, samples, loss, blocks)
    entered.close()
    for hook in hooks:
        hook.remove()
    other, uneven, leaves = None, (), ()
    if seen is not None and (seen.decided or seen.decided_by_batch):
        looker = Looker(one_for_all=True)
        twin = _build(looker, model_class, arguments)
        freeze_by_name(twin, frozen_parameters)
        entered_again = Entered(twin)
        other, refused = _try_to_look(looker, twin, _all_alike(samples), loss)
        problem = refused if seen.decided else None  # a batch's values may be needed as they are
        uneven = () if other is None else tuple(sorted(seen.trained ^ other.trained))
        leaves = leaf_modules(model, uneven, entered.once & entered_again.once)
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    active, matrices = _declared_active(model, sum(sizes.values())), None
    if seen is not None:
        active = active or active_params(seen, other, parameters, LOOKED_AT_SAMPLES * tokens_per_sample)
        matrices = matrix_params(seen, sizes)
        problem = problem or uncounted_matrices(seen, parameters, LOOKED_AT_SAMPLES * tokens_per_sample, active)
    profile = _class_profile(model, samples, seen, precision, tokens_per_sample)
    if looks_at_pairs and seen is not None:
        profile = _with_pairs(profile, model_class, arguments, frozen_parameters, samples, loss)
    return ClassMeasurement(
        num_params=sum(sizes.values()),
        num_params_trainable=trainable,
        num_params_embedding=_embedding_params(model, called[-1] if called else None),
        num_params_active=active,
        num_params_matrices=matrices,
        flops_per_sample=None if seen is None or problem else _training_flops(seen) // LOOKED_AT_SAMPLES,
        untrained=_untrained(parameters, seen, other),
        uneven=uneven,
        leaves=leaves,
        was_seen=seen is not None and (other is not None or not seen.decided),
        unknown_masks=seen is not None and seen.unknown_masks > 0,
        profile=_with_leaves(profile, model, leaves, optimizer),
        problem=problem,
    )


def _untrained(parameters: Mapping[str, nn.Parameter], *looks: Seen | None) -> tuple[str, ...]:
    trained = set().union(*(seen.trained for seen in looks if seen is not None))
    return tuple(name for name, each in parameters.items() if trained and each.requires_grad and name not in trained)


def _all_alike(samples: Any) -> Any:
    """The batch with each tensor of integers filled with its first."""

    def alike(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor.ndim > 0 and tensor.numel() > 0 and tensor.dtype in (torch.int64, torch.int32)
        return tensor.flatten()[0].expand_as(tensor).clone() if whole else tensor

    return _pytree.tree_map_only(torch.Tensor, alike, samples)


def _declared_active(model: nn.Module, total: int) -> int | None:
    """What a class says of its active parameters by its attribute `num_active_parameters`; None where it says nothing.

    Raises:
        PlanError: That is no number of its parameters.
    """
    declared = getattr(model, "num_active_parameters", None)
    if declared is None:
        return None
    if not isinstance(declared, int) or isinstance(declared, bool) or not 0 < declared <= total:
        raise PlanError(
            f"{type(model).__name__}.num_active_parameters is {declared!r}: it must be an integer from 1 to the "
            f"{total:,} parameters there are (a property of the module, not a method)"
        )
    return declared


def _try_to_look(
    looker: Looker,
    model: nn.Module,
    samples: Any,
    loss: Callable[[nn.Module, Any], torch.Tensor],
    blocks: Sequence[nn.Module] = (),
) -> tuple[Seen | None, str | None]:
    """What was seen, or what went wrong.

    Raises:
        PlanError: The loss is no scalar, or has no gradient.
    """
    try:
        seen = looker.look(model, samples, loss, blocks)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    value = seen.loss
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        found = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"{value!r}"
        raise PlanError(f"the loss function must return a scalar tensor; it returned {found}: take its mean")
    if not value.requires_grad:
        raise PlanError(
            "the loss function must return what a gradient can be taken of; it returned a number that no weight has a "
            "part in: leave detach() and argmax out of it"
        )
    return seen, None


def _training_flops(seen: Seen) -> int:
    return seen.forward_flops + seen.backward_flops


def _embedding_params(model: nn.Module, last: nn.Module | None) -> int:
    """Parameters of tables of the vocabulary, each tensor once; the layer called last may be the output head."""
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    if tables and isinstance(last, nn.Linear) and last.out_features == max(len(table) for table in tables):
        tables.add(last.weight)
    return sum(table.numel() for table in tables)


def freeze_by_name(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Switch off the gradients of all parameters whose name matches a pattern.

    Raises:
        PlanError: A pattern matches nothing.
    """
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


def _gap_bytes(parameter: nn.Parameter) -> int:
    return -4 * parameter.numel() % ALLOCATION_BYTES


def _held_params(model: nn.Module) -> int:
    """Of packed projections of attention: hooks of ZeRO-3 part one input into three, and the weight into views."""
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    return sum(each.in_proj_weight.numel() for each in attentions if each.in_proj_weight is not None)


def _class_profile(model: nn.Module, batch: Any, seen: Seen | None, precision: Precision, tokens: int) -> ModelProfile:
    """The profile of a module of which nothing is known but its parameters, its forward pass and what that saves."""
    parameters = list(model.parameters())
    num_params = sum(parameter.numel() for parameter in parameters)
    saved = 0 if seen is None else seen.saved_bytes // LOOKED_AT_SAMPLES
    blocks = repeated_blocks(model)
    num_blocks, block_params = len(blocks), max(sum(p.numel() for p in block.parameters()) for block in blocks)
    largest = max(parameter.numel() for parameter in parameters)
    input_bytes = sum(t.numel() * t.element_size() for t in _pytree.tree_leaves(batch) if isinstance(t, torch.Tensor))
    profile = ModelProfile(
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
        width=max((min(parameter.shape) for parameter in parameters if parameter.ndim >= 1), default=1),
        sequence_length=tokens,
        precision=precision,
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
        num_tensors=sum(parameter.requires_grad for parameter in parameters),
        gap_bytes=sum(map(_gap_bytes, parameters)),
        trained_gap_bytes=sum(_gap_bytes(parameter) for parameter in parameters if parameter.requires_grad),
        held_params=_held_params(model),
    )
    if seen is None or not seen.block_input_bytes:
        return profile
    of_a_block = seen.saved_in_blocks_bytes // LOOKED_AT_SAMPLES // num_blocks
    return replace(
        profile,
        block_saved_bytes=of_a_block,
        block_saved_bytes_zero3=of_a_block,
        block_input_bytes=seen.block_input_bytes // LOOKED_AT_SAMPLES,
        outside_saved_bytes=saved - num_blocks * of_a_block,
        recomputes_blocks=True,
    )


def _with_pairs(
    profile: ModelProfile,
    model_class: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    frozen: tuple[str, ...],
    samples: Any,
    loss: Callable[[nn.Module, Any], torch.Tensor],
) -> ModelProfile:
    """The profile with what pairs of samples save; gradients in and out of one of these are there beside them."""

    def build(looker: Looker) -> nn.Module:
        model = _build(looker, model_class, arguments)
        freeze_by_name(model, frozen)
        return model

    of_a_pair = saved_for_a_pair(build, samples, loss)
    return replace(profile, pair_saved_bytes=of_a_pair, pair_transient_bytes=2 * of_a_pair)


def _with_leaves(
    profile: ModelProfile, model: nn.Module, leaves: tuple[str, ...], optimizer: OptimizerPlan | None
) -> ModelProfile:
    """The profile of a model some of whose modules ZeRO-3 gathers whole, gradients among them, and of its optimiser."""
    sizes = (sum(parameter.numel() for parameter in model.get_submodule(name).parameters()) for name in leaves)
    whole = max(sizes, default=0)
    states = None
    if optimizer is not None:
        states = optimizer_memory(optimizer.name, state_tensors(model, optimizer), optimizer.bytes_an_element)
    return replace(
        profile,
        block_params=max(profile.block_params, whole),
        block_largest_params=max(profile.block_largest_params, whole),
        leaf_modules=leaves,
        states=states,
    )


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The entries of the longest `ModuleList` or `Sequential`; the model itself where it has neither."""
    lists = [module for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    return list(max(lists, key=len, default=())) or [model]

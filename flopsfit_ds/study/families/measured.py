"""What was measured of a module, as planning needs it, and the search for a size that has so many parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.base.units import format_count
from flopsfit_ds.model.architecture import LanguageShape
from flopsfit_ds.model.flops import conventional_flops
from flopsfit_ds.plan.family import SizedModel
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan
from flopsfit_ds.simulate.counting.look import Looker
from flopsfit_ds.simulate.profile import ClassMeasurement, build_without_weights, freeze_by_name
from flopsfit_ds.spec import Training
from flopsfit_ds.train.optimizers.kinds import moved_from_head

_LARGEST_SIZE = 1 << 24  # beyond all widths, depths and vocabularies: the size does not grow the class
_LOOKS = 6
"""At sizes, for a number of active parameters; two are enough where their share is the same at all sizes."""


def nearest_by_active(
    nearest_by_total: Callable[[float], SizedModel],
    num_params: float,
    name: str,
    size_of: Callable[[SizedModel], str],
    remedy: str,
) -> SizedModel:
    """The model nearest to a number of parameters, which means active ones where the model is sized by them.

    Their share of the total changes slowly with the size, so that the total aimed at settles in a few looks.

    Args:
        nearest_by_total: The model nearest to a total, however far.
        num_params: Asked for.
        name: Of the model, for an error.
        size_of: What a model's size parameter is, for an error.
        remedy: What to change, for an error.

    Raises:
        PlanError: No size is within a factor of 2.
    """
    model = nearest_by_total(num_params)
    for _ in range(_LOOKS):
        aimed = nearest_by_total(num_params * model.num_params / model.num_params_of_design)
        if aimed is model:
            break
        model = aimed
    off = num_params / model.num_params_of_design
    if not 0.5 <= off <= 2:  # where sizes are coarse, the next may be nearer: once more as far on
        model = nearest_by_total(num_params * off * model.num_params / model.num_params_of_design)
    counted = model.num_params_of_design
    if not 0.5 <= counted / num_params <= 2:
        active = "active " * (counted != model.num_params)
        raise PlanError(
            f"no {name} has about {format_count(num_params)} {active}parameters: with {size_of(model)} it has "
            f"{format_count(counted)}; change {remedy}"
        )
    return model


def smallest_reaching(
    count: Callable[[int], int], num_params: float, multiple: int, name: str, parameter: str, counted: str = ""
) -> int:
    """Smallest step with so many parameters: doubling, then bisection; parameters grow with the size.

    Args:
        count: Parameters at a step, which counts multiples of the size parameter.
        num_params: To be reached.
        multiple: The size parameter's granularity.
        name: Of the model, for an error.
        parameter: Name of the size parameter.
        counted: What is counted, for an error, where it is not parameters.

    Raises:
        SpecError: They do not grow.
    """
    high = 1
    while count(high) < num_params:
        if high * multiple > _LARGEST_SIZE or (high > 1 and count(high) <= count(high // 2)):
            found = f"{counted} is {count(high)}" if counted else f"it has {format_count(count(high))} parameters"
            raise SpecError(f"{name} does not grow with {parameter}: at {high * multiple} {found}")
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < num_params else (low, middle)
    return high


def was_moved(
    model_class: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    training: Training,
    optimizer: OptimizerPlan | None,
) -> bool:
    """Whether the optimiser of a model once took layers of a stack for heads, and trains them otherwise now.

    Args:
        model_class: Of the model.
        arguments: Its constructor's.
        training: The spec's section.
        optimizer: What trains it; None for one rate for all.
    """
    if optimizer is None:
        return False
    model = build_without_weights(model_class, arguments)
    freeze_by_name(model, training.frozen_parameters)
    return moved_from_head(model, optimizer)


def sized_model(
    name: str,
    shape: LanguageShape,
    measured: ClassMeasurement,
    *,
    tokens_per_sample: int,
    approximate_flops: bool,
    sized_by_active: bool,
    moved_from_head: bool,
    warnings: list[str],
) -> SizedModel:
    """What planning must know of a module, and what the user should know of the measurement.

    Args:
        name: Of the model, for people.
        shape: Of the model.
        measured: At that shape.
        tokens_per_sample: Predictions a sample counts as.
        approximate_flops: Whether FLOPs may be 6 N D where they cannot be counted.
        sized_by_active: Whether sizes asked for mean active parameters.
        moved_from_head: Whether its optimiser once took layers of a stack for heads.
        warnings: Grows by what could not be measured.

    Raises:
        PlanError: FLOPs cannot be counted, and may not be 6 N D.
    """
    flops = measured.flops_per_sample
    if measured.problem is None and not flops:
        measured = replace(measured, problem="it has no operation with known FLOPs")
    if measured.problem is not None:
        flops = _accepted_flops(name, measured, tokens_per_sample, approximate_flops, warnings)
    if measured.unknown_masks:
        warnings.append(
            f"{name}: an attention mask has values that are not known without weights: attention is counted over the "
            "full context, windows included"
        )
    if measured.untrained:
        shown = f"{', '.join(measured.untrained[:2])}{', ...' * (len(measured.untrained) > 2)}"
        warnings.append(
            f"{name}: {len(measured.untrained)} parameters get no gradient from the loss and are counted all the same "
            f"({shown}); leave them out of the class, or name them in training.frozen_parameters"
        )
    profile = measured.profile
    if measured.uneven:
        profile = replace(profile, uneven_gradients=True)
        sharded = f" or at ZeRO-3, which gathers {', '.join(measured.leaves[:2])} whole," if measured.leaves else ","
        warnings.append(
            f"{name}: a batch may pass parameters by ({', '.join(measured.uneven[:2])}, ...; {len(measured.uneven)} in "
            "all), so that GPUs would have gradients of different ones: its points are planned at "
            f"ZeRO-0{sharded} or on one GPU"
        )
    return SizedModel(
        shape=shape,
        num_params=measured.num_params,
        num_params_non_embedding=measured.num_params - measured.num_params_embedding,
        num_params_trainable=measured.num_params_trainable,
        num_params_active=measured.num_params_active,
        num_params_matrices=measured.num_params_matrices,
        flops_per_token=(flops or 0) / tokens_per_sample,
        flops_source="counted" if measured.problem is None else "6nd",
        profile=profile,
        sized_by_active=sized_by_active,
        moved_from_head=moved_from_head,
    )


def flops_in_batch(
    model_class: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    *,
    batch: Any,
    num_samples: int,
    loss: Callable[[nn.Module, Any], torch.Tensor],
    frozen_parameters: tuple[str, ...] = (),
) -> int:
    """Training FLOPs of a sample, as one of a batch; what the class raises is raised.

    Args:
        model_class: The class.
        arguments: Its constructor's arguments.
        batch: A tree of tensors.
        num_samples: In it.
        loss: `loss(model, batch)`.
        frozen_parameters: Glob patterns of parameters that are not trained.
    """
    looker = Looker()
    model = looker.build(model_class, arguments)
    freeze_by_name(model, frozen_parameters)
    seen = looker.look(model, batch, loss)
    return (seen.forward_flops + seen.backward_flops) // num_samples


def _accepted_flops(name: str, measured: ClassMeasurement, tokens: int, accepted: bool, warnings: list[str]) -> int:
    """6 N D of a sample, where the user accepts it.

    Raises:
        PlanError: They do not.
    """
    if not accepted:
        raise PlanError(
            f"{name}: FLOPs cannot be counted without weights ({measured.problem}); let its forward pass take no "
            "decision that depends on values of weights, or accept 6 N D with approximate_flops=True "
            "(model.approximate_flops: true in a spec): far too few where a parameter is used many times a sample, "
            "as in a convolution, and far too many where it is used by some tokens only, as in experts"
        )
    unseen = (
        "; whether a batch may pass parameters by could not be seen either: where it may, several GPUs train it at "
        "ZeRO-0 only (placement.zero_stages: [0])"
    )
    warnings.append(
        f"{name}: FLOPs are 6 N D, as accepted by approximate_flops: they cannot be counted ({measured.problem})"
        f"{unseen if not measured.was_seen else ''}"
    )
    frozen = measured.num_params - measured.num_params_trainable
    used = measured.num_params_active or measured.num_params
    return round(conventional_flops(used, tokens)) - 2 * frozen * tokens

"""muP for a class of the user's own that declares its groups, by its `mup_groups`."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.model.architecture import MupScales
from flopsfit_ds.plan.recipe.mup import scales
from flopsfit_ds.plan.recipe.optimizers import Kind
from flopsfit_ds.simulate.profile import build_without_weights
from flopsfit_ds.spec.rules import Mup
from flopsfit_ds.train.model.mup import Declared, Group, declared_by, names_by_group

_KINDS: dict[Group, Kind] = {"input": "embeddings", "hidden": "matrices", "output": "head"}
_SIDES: dict[Group, str] = {"input": "at most one side grows", "hidden": "two sides grow", "output": "one side grows"}


def scales_of_class(
    mup: Mup, model_class: Callable[..., nn.Module], arguments: Mapping[str, Any], wider: Mapping[str, Any]
) -> MupScales:
    """How far a model lies from the base.

    Args:
        mup: The spec's section.
        model_class: The user's.
        arguments: Its constructor's.
        wider: Those of a wider model, on which it is seen which sides of parameters grow.

    Raises:
        PlanError: The class declares nothing, or what is not so.
    """
    model, other = (build_without_weights(model_class, each) for each in (arguments, wider))
    declared = declared_by(model)
    name = type(model).__name__
    if mup.base_depth is not None and declared.depth is None:
        raise PlanError(
            f"training.mup: {name}.mup_groups has no depth and branches to follow depth by; write "
            f"training.mup: {{base_width: {mup.base_width}, base_depth: null}}"
        )
    for pattern in declared.branches:
        if not any(fnmatch.fnmatchcase(module, pattern) for module, _ in model.named_modules()):
            raise PlanError(f"training.mup: {name}.mup_groups['branches']: {pattern!r} is no module of it")
    groups = names_by_group(model)
    _check_heads(name, groups, model)
    _check_sides(name, groups, declared, model, other)
    kinds: dict[str, list[str]] = {}
    for own, parameter in model.named_parameters():
        kinds.setdefault(_KINDS[groups[own]] if parameter.ndim >= 2 else "norms", []).append(own)
    found = tuple((kind, tuple(names)) for kind, names in sorted(kinds.items()))
    return replace(scales(mup, declared.width, declared.depth, None), branches=declared.branches, groups=found)


def _check_heads(name: str, groups: Mapping[str, Group], model: nn.Module) -> None:
    """See that what an output matrix is multiplied by is the input of a module of its own, which can be scaled."""
    for module_name, module in model.named_modules():
        own = [each for each, held in module.named_parameters(module_name, recurse=False) if held.ndim >= 2]
        heads = [each for each in own if groups[each] == "output"]
        if heads and (len(heads) < len(own) or next(module.children(), None) is not None):
            raise PlanError(
                f"training.mup: {name}.mup_groups has {heads[0]} in output, and the module that holds it does more "
                "than multiply by it: let it be the weight of a layer of its own, whose input is divided by the width"
            )


def _check_sides(
    name: str, groups: Mapping[str, Group], declared: Declared, model: nn.Module, other: nn.Module
) -> None:
    """See that matrices grow with width as their group says."""
    if declared_by(other).width == declared.width:
        return
    shapes = {own: tuple(each.shape) for own, each in other.named_parameters(remove_duplicate=False)}
    for own, parameter in model.named_parameters(remove_duplicate=False):
        shape, wide, group = tuple(parameter.shape), shapes.get(own, ()), groups[own]
        if (len(shape) < 2 and group != "hidden") or len(shape) != len(wide):
            continue
        grown = sum(left != right for left, right in zip(shape, wide, strict=True))
        if grown not in {"input": (0, 1), "hidden": (2,), "output": (1,)}[group]:
            raise PlanError(
                f"training.mup: {name}.mup_groups has the parameter {own} in {group}, of which {_SIDES[group]} with "
                f"width; it is {list(shape)} at a width of {declared.width} and {list(wide)} at "
                f"{declared_by(other).width}"
            )

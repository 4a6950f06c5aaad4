"""muP for modules that were not written for it: weights drawn again in scale, and multipliers as hooks.

A model of transformers is known by its architecture. A class of the user's own says what it is by an attribute, or a
property, `mup_groups`: a dictionary in the terms of Yang et al., 2022 (arXiv:2203.03466, table 8), of which `Declared`
is the checked form.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.model.architecture import MupScales
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan
from flopsfit_ds.train.optimizers.kinds import known_parameters


@torch.no_grad()
def scale_module(model: nn.Module, mup: MupScales) -> None:
    """Give a model whose weights are all drawn with one deviation the scales and multipliers of muP.

    Its matrices get the deviation over the root of the width's ratio; what its head reads is divided by that ratio,
    what its branches give by that of the depth, and attention scores by the root of the heads' ratio.

    Args:
        model: With an output head that is called as a module, and attention that reads its own `scaling`.
        mup: How far it lies from the base.
    """
    for known in known_parameters(model, OptimizerPlan("adamw")):
        if known.kind == "matrices":
            known.parameter.div_(math.sqrt(mup.width))
    _scale_branches(model, mup)
    for module in model.modules():
        if mup.head != 1 and isinstance(getattr(module, "scaling", None), float):
            attention: Any = module
            attention.scaling = attention.scaling / math.sqrt(mup.head)
    library: Any = model
    head: nn.Module = library.get_output_embeddings()
    if mup.width != 1:
        head.register_forward_pre_hook(functools.partial(_scale_input, 1 / mup.width))


Group = Literal["input", "hidden", "output"]
GROUPS: tuple[Group, ...] = ("input", "hidden", "output")
"""What comes of a fixed number of inputs, and all vectors; what maps widths to widths; what maps a width to outputs."""
_STDS = ("fan_in", "constant")
_KEYS = ("width", "initial_std", *GROUPS, "depth", "branches")


@dataclass(frozen=True)
class Declared:
    """What a class says of itself.

    Attributes:
        width: Of what its hidden matrices map between.
        initial_std: How it draws hidden and output matrices: by the root of their inputs (`fan_in`, as torch's own
            layers do), or alike at all widths (`constant`).
        patterns: Of each group, glob patterns of names of parameters.
        depth: Layers; None where it does not say.
        branches: Of modules whose output is added to the residual stream, glob patterns of names.
    """

    width: int
    initial_std: str
    patterns: dict[Group, tuple[str, ...]]
    depth: int | None
    branches: tuple[str, ...]

    def groups_of(self, name: str) -> list[Group]:
        """The groups whose patterns a parameter's name matches."""
        return [group for group in GROUPS if _matches(name, self.patterns[group])]


def declared_by(model: nn.Module) -> Declared:
    """What a class says by its `mup_groups`.

    Raises:
        PlanError: It says nothing, or not in the form that is read.
    """
    name = type(model).__name__
    said: Any = getattr(model, "mup_groups", None)
    if not isinstance(said, dict):
        found = "no attribute mup_groups" if said is None else f"mup_groups, which is {type(said).__name__}"
        raise PlanError(
            f"training.mup: {name} has {found}; let it say its groups by a dictionary with width, initial_std, input, "
            "hidden and output (a property of the module; docs/how-to/own-model.md), or write mup: false"
        )
    missing = [key for key in ("width", "initial_std", *GROUPS) if key not in said]
    unknown = [key for key in said if key not in _KEYS]
    if missing or unknown:
        what = f"no {missing[0]!r}" if missing else f"a key {unknown[0]!r}"
        raise PlanError(f"training.mup: {name}.mup_groups has {what}; its keys are {', '.join(_KEYS)}")
    for key in ("width", "depth"):
        value = said.get(key)
        if not (key == "depth" and value is None) and not (type(value) is int and value >= 1):
            raise PlanError(f"training.mup: {name}.mup_groups[{key!r}] is {value!r}; write a whole number from 1 on")
    if said["initial_std"] not in _STDS:
        raise PlanError(
            f"training.mup: {name}.mup_groups['initial_std'] is {said['initial_std']!r}; write 'fan_in' where matrices "
            "are drawn by the root of their inputs, as torch's layers draw them, 'constant' where alike at all widths"
        )
    patterns = {key: _patterns(name, key, said.get(key, ())) for key in (*GROUPS, "branches")}
    if (said.get("depth") is None) != (not patterns["branches"]):
        raise PlanError(
            f"training.mup: {name}.mup_groups has one of depth and branches: give both, the layers and the modules "
            "whose output each adds to the residual stream, or neither"
        )
    groups: dict[Group, tuple[str, ...]] = {group: patterns[group] for group in GROUPS}
    return Declared(said["width"], said["initial_std"], groups, said.get("depth"), patterns["branches"])


def _patterns(name: str, key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(each, str) for each in value):
        raise PlanError(
            f"training.mup: {name}.mup_groups[{key!r}] is {value!r}; write a list of patterns of names, such as "
            "['blocks.*.weight']"
        )
    return tuple(value)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class ScaledClass:
    """A class whose models have the scales and multipliers of muP, as their `mup_groups` ask for them.

    Attributes:
        model_class: The user's.
        mup: How far the model that is built lies from the base.
    """

    model_class: Callable[..., nn.Module]
    mup: MupScales

    @property
    def __name__(self) -> str:
        """Of the class."""
        return self.model_class.__name__

    def __call__(self, **arguments: Any) -> nn.Module:
        """The model."""
        model = self.model_class(**arguments)
        scale_declared(model, self.mup)
        return model


@torch.no_grad()
def scale_declared(model: nn.Module, mup: MupScales) -> None:
    """Give a model of a class that declares its groups the scales and multipliers of muP.

    Hidden matrices that are drawn alike at all widths are divided by the root of the width's ratio, output matrices
    that are drawn by the root of their inputs multiplied by it; what the modules of output matrices read is divided by
    that ratio, what branches give by that of the depth.

    Args:
        model: Of such a class.
        mup: How far it lies from the base.
    """
    declared = declared_by(model)
    _scale_branches(model, mup)
    if mup.width == 1:
        return
    factor = math.sqrt(mup.width)
    tables = {id(each) for name, each in _all_names(model) if "input" in declared.groups_of(name)}
    for name, parameter in model.named_parameters():
        if declared.groups_of(name) == ["hidden"] and declared.initial_std == "constant":
            parameter.div_(factor)
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        heads = [
            each
            for own, each in module.named_parameters(module_name, recurse=False)
            if each.ndim >= 2 and declared.groups_of(own) == ["output"]
        ]
        if not heads:
            continue
        module.register_forward_pre_hook(functools.partial(_scale_input, 1 / mup.width))
        for head in heads:
            if declared.initial_std == "fan_in" and id(head) not in tables | seen:
                head.mul_(factor)
            seen.add(id(head))


def _all_names(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by all names they have: a tied one has two."""
    return iter(model.named_parameters(remove_duplicate=False))


def names_by_group(model: nn.Module) -> dict[str, Group]:
    """The group of each parameter that a class declares, by all names they have.

    Raises:
        PlanError: One is in no group, or in two.
    """
    declared = declared_by(model)
    found: dict[str, Group] = {}
    for name, _ in _all_names(model):
        groups = declared.groups_of(name)
        if len(groups) != 1:
            where = f"in two, {' and '.join(groups)}" if groups else f"in none of {', '.join(GROUPS)}"
            raise PlanError(
                f"training.mup: {type(model).__name__}.mup_groups has the parameter {name} {where}; write patterns of "
                "names of which one group's matches it"
            )
        found[name] = groups[0]
    return found


def _scale_branches(model: nn.Module, mup: MupScales) -> None:
    if mup.branch_factor == 1:
        return
    for name, module in model.named_modules():
        if _matches(name, mup.branches):
            module.register_forward_hook(functools.partial(_scale_output, mup.branch_factor))


def _scale_input(factor: float, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] * factor, *inputs[1:])


def _scale_output(factor: float, _module: nn.Module, _inputs: Any, output: Any) -> Any:
    return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

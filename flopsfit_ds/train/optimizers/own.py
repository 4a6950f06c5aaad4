"""A factory of the user's own, looked at once at planning: what it makes, and how much that holds."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils import _pytree

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.base.usercode import check_allowed, source_hash
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan, plan_optimizer
from flopsfit_ds.spec.optimizers import Optimizer
from flopsfit_ds.train.optimizers.build import RATE_FACTOR, call_factory

_FIELD = "training.optimizer.factory"
_SIDE = 64  # of the matrix that states are counted on: large enough for what a tensor holds beside its elements
_STEPS = 2  # states that come with a second step


def look_at_own(optimizer: Optimizer | None, allowed: Sequence[str] | None) -> OptimizerPlan | None:
    """The plan of a sweep's optimiser, a factory of the user's own imported and tried on a small matrix and a vector.

    Args:
        optimizer: The spec's section.
        allowed: Packages that the user allowed; None where the caller is the user's own code.

    Raises:
        SpecError: The factory is not allowed, or cannot be imported.
        PlanError: It makes no optimiser that trains what it is given.
    """
    plan = plan_optimizer(optimizer)
    if optimizer is None or plan is None or not plan.factory:
        return plan
    if allowed is not None:
        check_allowed(plan.factory, allowed, _FIELD)
    module, _, name = plan.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the user's module does while it is imported
        raise SpecError(
            f"{_FIELD}: {plan.factory}: {type(error).__name__}: {error}; is its folder on PYTHONPATH?"
        ) from error
    if not callable(factory):
        raise SpecError(f"{_FIELD}: {module} has no function {name}")
    return replace(plan, source_hash=source_hash(factory), bytes_an_element=_count(plan))


def _count(plan: OptimizerPlan) -> tuple[float, float]:
    """Bytes of states an element of a matrix and of a vector.

    Raises:
        PlanError: The factory makes no optimiser, or one that does not train what it is given.
    """
    matrix, vector = nn.Parameter(torch.ones(_SIDE, _SIDE)), nn.Parameter(torch.ones(_SIDE * _SIDE))
    groups = [{"params": [each], "lr": 0.1, RATE_FACTOR: 1.0, "weight_decay": 0.0} for each in (matrix, vector)]
    try:
        made = call_factory(plan, groups, 0.1)
    except Exception as error:
        raise PlanError(
            f"{_FIELD}: {plan.factory}(groups, learning_rate, {dict(plan.options)}): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise PlanError(f"{_FIELD}: {plan.factory} returned {type(made).__name__}; it must be a torch.optim.Optimizer")
    if len(made.param_groups) != len(groups):
        raise PlanError(
            f"{_FIELD}: {plan.factory} made {len(made.param_groups)} groups of {len(groups)}; it must keep those it is "
            "given, whose rates are set before each step"
        )
    for _ in range(_STEPS):
        for each in (matrix, vector):
            each.grad = torch.linspace(-1, 1, each.numel()).view_as(each)
        made.step()
    for kind, each in (("a matrix", matrix), ("a vector", vector)):
        if bool((each == 1).all()):
            raise PlanError(f"{_FIELD}: {plan.factory} made an optimiser that does not change {kind}")
    return tuple(_bytes_of(made.state.get(each, {})) / each.numel() for each in (matrix, vector))  # pyright: ignore[reportReturnType]


def _bytes_of(state: object) -> int:
    tensors = (leaf for leaf in _pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor) and leaf.ndim)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

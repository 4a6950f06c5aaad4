"""The optimiser of a run: the only place where one is made, for training and for the simulation of its memory."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from flopsfit_ds.plan.recipe.optimizers import GroupKey, OptimizerPlan
from flopsfit_ds.plan.recipe.recipe import Recipe
from flopsfit_ds.train.optimizers.kinds import KnownParameter, known_parameters, shape_of
from flopsfit_ds.train.optimizers.lion import Lion
from flopsfit_ds.train.optimizers.muon import build_muon

RATE_FACTOR = "rate_factor"
"""Of a group, over the recipe's rate."""


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all trained parameters; without a plan of it fused AdamW, with decay on matrices.

    Raises:
        ImportError: bitsandbytes is asked for and is not there.
    """
    plan = recipe.optimizer
    if plan is None:
        return torch.optim.AdamW(_matrices_and_others(model, recipe), **_adamw(recipe), fused=True)
    known = known_parameters(model, plan)
    groups = _groups(known, recipe, orthogonal=False)
    if plan.name == "muon":
        return build_muon(_groups(known, recipe, orthogonal=True), groups, recipe)
    if plan.name == "adamw":
        return torch.optim.AdamW(groups, **_adamw(recipe), fused=True)
    if plan.name == "adafactor":
        return torch.optim.Adafactor(
            groups,
            lr=recipe.learning_rate,
            beta2_decay=plan.option("decay_exponent"),
            d=plan.option("clip_threshold"),
            foreach=False,  # by one tensor at a time: all at once hold a second copy of the gradients
        )
    if plan.name == "lion":
        return Lion(groups, recipe.learning_rate, (recipe.beta1, recipe.beta2))
    if plan.name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit(groups, **_adamw(recipe))
    return call_factory(plan, groups, recipe.learning_rate)


def call_factory(plan: OptimizerPlan, groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """What the user's own function makes of groups of parameters."""
    module, _, name = plan.factory.partition(":")
    factory = getattr(importlib.import_module(module), name)
    return factory(groups, learning_rate, **dict(plan.options))


def rate_factors(optimizer: Any) -> tuple[float, ...]:
    """Of every group of parameters, its rate over the recipe's."""
    return tuple(float(group.get(RATE_FACTOR, 1.0)) for group in optimizer.param_groups)


def _adamw(recipe: Recipe) -> dict[str, Any]:
    return {"lr": recipe.learning_rate, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.epsilon}


def _matrices_and_others(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Decay on matrices only (Loshchilov and Hutter, 2019)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if len(shape_of(parameter)) >= 2]
    others = [parameter for parameter in trainable if len(shape_of(parameter)) < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _groups(known: list[KnownParameter], recipe: Recipe, orthogonal: bool) -> list[dict[str, Any]]:
    """One group for all parameters with one rate and one decay: ZeRO-1 and 2 part each by itself."""
    found: dict[GroupKey, list[nn.Parameter]] = {}
    for each in known:
        if each.group.orthogonal == orthogonal:
            found.setdefault(each.group, []).append(each.parameter)
    groups = []
    for key, parameters in found.items():
        factor = key.rate_factor * key.scale
        decay = recipe.weight_decay if key.weight_decay is None else key.weight_decay
        group = {
            "params": parameters,
            "lr": recipe.learning_rate * factor,
            RATE_FACTOR: factor,
            "weight_decay": decay / key.scale,  # what a step takes of a weight goes by its rate alone
        }
        if key.epsilon_factor != 1:
            group["eps"] = recipe.epsilon * key.epsilon_factor
        groups.append(group)
    return groups

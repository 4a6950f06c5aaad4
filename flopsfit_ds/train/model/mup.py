"""muP for modules that were not written for it: weights drawn again in scale, and multipliers as hooks."""

from __future__ import annotations

import fnmatch
import functools
import math
from typing import Any

import torch
from torch import nn

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
    for name, module in model.named_modules():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in mup.branches) and mup.branch_factor != 1:
            module.register_forward_hook(functools.partial(_scale_output, mup.branch_factor))
        if mup.head != 1 and isinstance(getattr(module, "scaling", None), float):
            attention: Any = module
            attention.scaling = attention.scaling / math.sqrt(mup.head)
    library: Any = model
    head: nn.Module = library.get_output_embeddings()
    if mup.width != 1:
        head.register_forward_pre_hook(functools.partial(_scale_input, 1 / mup.width))


def _scale_input(factor: float, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] * factor, *inputs[1:])


def _scale_output(factor: float, _module: nn.Module, _inputs: Any, output: Any) -> Any:
    return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

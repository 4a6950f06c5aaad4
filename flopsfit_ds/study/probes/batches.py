"""Whether the FLOPs of a sample depend on its batch: on how many others there are, or on the values in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flopsfit_ds.base.units import format_count
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.simulate.counting.look import Looker
from flopsfit_ds.simulate.profile import LOOKED_AT_SAMPLES, freeze_by_name
from flopsfit_ds.train.data.dataset import spaced_batch

_TOLERANCE = 0.01
"""What planned FLOPs promise to be within of a count by hand."""
_LARGEST_BATCH = 64
"""The largest micro-batch that rules allow by default."""


def batch_dependence(
    plan: SweepPlan,
    model_class: Callable[..., nn.Module],
    dataset: Any,
    loss: Callable[[nn.Module, Any], torch.Tensor],
) -> list[str]:
    """What to say where a sample takes other FLOPs in a batch of training than planning counted.

    Planning looks at one sample, twice in a batch. Losses that compare samples with each other, and models that work on
    what differs in a batch or on what a mask selects, take more or less in another. Looked at is the smallest model.

    Args:
        plan: Of a class.
        model_class: The class.
        dataset: What it is trained on.
        loss: `loss(model, batch)`.
    """
    run = min(plan.runs, key=lambda run: run.num_params_total)
    if run.flops_source != "counted" or run.model.family != "class":
        return []
    at_once = run.placement.strategy.micro_batch_size_per_gpu
    count = min(len(dataset), max(LOOKED_AT_SAMPLES, at_once), _LARGEST_BATCH)
    looker, name = Looker(), model_class.__name__
    try:
        model = looker.build(model_class, dict(run.model.arguments))
        freeze_by_name(model, run.recipe.frozen_parameters)
        seen = looker.look(model, spaced_batch(dataset, count), loss)
    except Exception as error:  # the user's own code, on a batch that planning has not seen
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return [f"{name}: FLOPs are those of one sample twice; those of {count} samples could not be counted ({said})"]
    planned = run.flops / (run.num_steps * run.global_batch_sequences)
    found = (seen.forward_flops + seen.backward_flops) / count
    if abs(found / planned - 1) <= _TOLERANCE:
        return []
    size = dict(run.model.arguments)[run.model.size_parameter]
    return [
        f"{name}: the FLOPs of a sample depend on its batch: with {run.model.size_parameter}={size}, planned are "
        f"{format_count(planned)}, those of the first sample twice, and in a batch of {count} samples of the data it "
        f"takes {format_count(found)} ({found / planned - 1:+.1%}): compute is off by so much"
    ]

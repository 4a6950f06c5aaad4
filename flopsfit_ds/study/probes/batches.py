"""Whether the FLOPs of a sample depend on its batch: on how many others there are, or on the values in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from flopsfit_ds.base.units import GIB, format_count
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.simulate.profile import LOOKED_AT_SAMPLES
from flopsfit_ds.study.families.measured import flops_in_batch
from flopsfit_ds.study.families.of_class import ClassFamily
from flopsfit_ds.train.data.dataset import spaced_batch

_TOLERANCE = 0.01
"""What planned FLOPs promise to be within of a count by hand."""
_LARGEST_BATCH = 64
"""The largest micro-batch that rules allow by default."""
_LARGEST_BATCH_BYTES = GIB
"""What a larger batch may take of this machine's memory, where all points are trained in such."""
_ROUNDS = 3
"""Of counting and planning: other FLOPs make other budgets' batches, which may have another micro-batch."""


@dataclass(frozen=True)
class _Count:
    """FLOPs of a sample of the smallest model.

    Attributes:
        planned: By the plan.
        found: In a batch of the data; None where they could not be counted.
        num_samples: Of that batch.
        problem: Why they could not be.
    """

    planned: float
    found: float | None
    num_samples: int
    problem: str = ""

    @property
    def is_off(self) -> bool:
        """Whether the plan promises something else."""
        return self.found is not None and abs(self.found / self.planned - 1) > _TOLERANCE


def plan_in_batches(
    build: Callable[[], SweepPlan],
    family: ClassFamily,
    model_class: Callable[..., nn.Module],
    dataset: Any,
    loss: Callable[[nn.Module, Any], torch.Tensor],
) -> SweepPlan:
    """The plan of a class, whose FLOPs are those of the batches that it trains, or which says by how much they are not.

    Planning looks at one sample, twice in a batch. Losses that compare samples with each other, and models that work on
    what differs in a batch or on what a mask selects, take more or less in another. Where one layout is held for all
    points, as of contrastive losses, its micro-batch is what FLOPs are counted in. Looked at is the smallest model.

    Args:
        build: Makes the plan.
        family: Of the class, which `build` takes sizes from.
        model_class: The class.
        dataset: What it is trained on.
        loss: `loss(model, batch)`.
    """
    plan, name, said = build(), model_class.__name__, []
    for rounds_left in reversed(range(_ROUNDS)):
        run = min(plan.runs, key=lambda run: run.num_params_total)
        if run.flops_source != "counted" or run.model.family != "class":
            break
        batch, size = _batch_of(run, dataset)
        count = _count(run, model_class, batch, size, loss)
        is_whole = size == run.placement.strategy.micro_batch_size_per_gpu
        if not (count.is_off and run.layout_held and is_whole and rounds_left):
            said += _words(run, count, name)
            break
        family.count_in(batch, size)
        plan = build()
        said = [
            f"{name}: the FLOPs of a sample depend on its batch; they are counted in the micro-batches of {size} that "
            "all points are trained with"
        ]
    return replace(plan, warnings=(*plan.warnings, *said))


def _batch_of(run: RunPlan, dataset: Any) -> tuple[Any, int]:
    """A batch of the data as the run trains it, as far as this machine may hold it, and its size."""
    at_once = max(LOOKED_AT_SAMPLES, run.placement.strategy.micro_batch_size_per_gpu)
    largest = _LARGEST_BATCH
    if run.layout_held:
        leaves = _pytree.tree_leaves(dataset[0])
        of_one = sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))
        largest = max(largest, _LARGEST_BATCH_BYTES // max(1, of_one))
    size = min(len(dataset), at_once, largest)
    return spaced_batch(dataset, size), size


def _count(
    run: RunPlan,
    model_class: Callable[..., nn.Module],
    batch: Any,
    size: int,
    loss: Callable[[nn.Module, Any], torch.Tensor],
) -> _Count:
    assert run.model.family == "class"
    planned = run.flops / (run.num_steps * run.global_batch_sequences)
    try:
        found = flops_in_batch(
            model_class, dict(run.model.arguments), batch=batch, num_samples=size, loss=loss,
            frozen_parameters=run.recipe.frozen_parameters,
        )  # fmt: skip
    except Exception as error:  # the user's own code, on a batch that planning has not seen
        return _Count(planned, None, size, f"{type(error).__name__}: {error}".splitlines()[0])
    return _Count(planned, found, size)


def _words(run: RunPlan, count: _Count, name: str) -> list[str]:
    """What to say of a count that the plan's FLOPs are not."""
    assert run.model.family == "class"
    size, planned, found = count.num_samples, count.planned, count.found
    if found is None:
        return [
            f"{name}: FLOPs are those of one sample twice; those of {size} samples could not be counted "
            f"({count.problem})"
        ]
    if not count.is_off:
        return []
    argument = dict(run.model.arguments)[run.model.size_parameter]
    return [
        f"{name}: the FLOPs of a sample depend on its batch: with {run.model.size_parameter}={argument}, planned are "
        f"{format_count(planned)}, those of the first sample twice, and in a batch of {size} samples of the data it "
        f"takes {format_count(found)} ({found / planned - 1:+.1%}): compute is off by so much"
    ]

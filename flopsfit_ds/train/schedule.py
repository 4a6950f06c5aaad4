"""The learning rate of each step: linear warm-up, then a schedule sized to the run's own steps."""

from __future__ import annotations

import math

from flopsfit_ds.plan.recipe.recipe import Recipe
from flopsfit_ds.spec.training import DecayShape


def learning_rate_at(step: int, num_steps: int, recipe: Recipe) -> float:
    """Learning rate of step 0, 1, ... num_steps - 1; the last step has the schedule's final value.

    A cosine and a line end with the run's own tokens: a schedule longer than the run biases its loss (Hoffmann et al.,
    2022, appendix B). The line to zero reaches zero after the last step, which is not in vain. A constant rate with
    decays (Hu et al., 2024, arXiv:2404.06395) is the same up to its first decay however long the run; one with several
    is at its peak again after each (Wen et al., 2024, arXiv:2410.05192).
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "linear-to-zero":
        return recipe.learning_rate * (num_steps - step) / (num_steps - recipe.warmup_steps)
    floor = recipe.final_learning_rate_fraction
    if recipe.schedule == "cosine":
        progress = (step - recipe.warmup_steps + 1) / (num_steps - recipe.warmup_steps)
        return recipe.learning_rate * (floor + (1 - floor) * _left("cosine", progress))
    for start, end in recipe.decays:
        if start <= step < end:
            return recipe.learning_rate * (
                floor + (1 - floor) * _left(recipe.decay_shape, (step - start + 1) / (end - start))
            )
    return recipe.learning_rate


def _left(shape: DecayShape, progress: float) -> float:
    """What is left of the peak over the floor: 1 before a decay, 0 at its end."""
    if shape == "linear":
        return 1 - progress
    if shape == "sqrt":
        return 1 - math.sqrt(progress)
    return 0.5 * (1 + math.cos(math.pi * progress))

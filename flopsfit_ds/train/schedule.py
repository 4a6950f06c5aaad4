"""The learning rate of each step: linear warm-up, then a cosine sized to the run's own steps."""

from __future__ import annotations

import math

from flopsfit_ds.plan.sweep_plan import Recipe


def learning_rate_at(step: int, num_steps: int, recipe: Recipe) -> float:
    """Learning rate of step 0, 1, ... num_steps - 1; the last step has the schedule's final value.

    The cosine ends with the run's own tokens: a schedule longer than the run biases its loss (Hoffmann et al., 2022,
    appendix B).
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps + 1) / (num_steps - recipe.warmup_steps)
    floor = recipe.final_learning_rate_fraction
    return recipe.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

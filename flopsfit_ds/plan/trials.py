"""Which trainings a design's points stand for: learning rates, seeds, and rates tried later at a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.plan.design import BatchPlan, DesignedPoint, seeds_of_points
from flopsfit_ds.plan.family import SizedModel
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan
from flopsfit_ds.plan.recipe.recipe import Recipe, make_recipe, num_rates, peak_rates, rule_point
from flopsfit_ds.plan.recipe.rules import RulePoint
from flopsfit_ds.plan.recorded.chosen import ChosenRun
from flopsfit_ds.spec import SweepSpec


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        number: Of its point.
        recipe: How it is optimised.
        seed: Of weights and data.
        names_rate: Whether its label needs the rate to be told from others.
        at: Its point, as rules look at it.
    """

    number: int
    recipe: Recipe
    seed: int
    names_rate: bool
    at: RulePoint


def trials_of(
    spec: SweepSpec,
    together: Sequence[tuple[DesignedPoint[SizedModel], BatchPlan]],
    optimizer: OptimizerPlan | None = None,
    chosen: Sequence[ChosenRun] = (),
) -> list[Trial]:
    """All trainings of a design's points, then those at rates that were chosen later.

    Args:
        spec: What the user wants.
        together: Points and their batches.
        optimizer: A user's own, looked at.
        chosen: Runs that an adaptive design chose.

    Raises:
        PlanError: A rate is chosen for a point that the design does not have.
    """
    seeds = seeds_of_points([point for point, _ in together], spec.training.seeds, spec.training.seeds_at)
    context = spec.model.context_length
    seen = [
        rule_point(point.model, batches.num_tokens, batches.global_batch_sequences * context)
        for point, batches in together
    ]
    named = num_rates(spec.training) > 1

    def trial(number: int, rate: float, seed: int, names_rate: bool) -> Trial:
        point, batches = together[number]
        recipe = make_recipe(spec.training, rate, seen[number], batches.num_steps, optimizer, point.model.shape.mup)
        return Trial(number, recipe, seed, names_rate, seen[number])

    found = [
        trial(number, rate, seed, named)
        for number in range(len(together))
        for rate in peak_rates(spec.training, seen[number])
        for seed in seeds[number]
    ]
    for run in chosen:
        if run.purpose == "tuning":
            number = _point_of(run, together)
            found += [trial(number, rate, seeds[number][0], True) for rate in run.learning_rates]
    return found


def _point_of(run: ChosenRun, together: Sequence[tuple[DesignedPoint[SizedModel], BatchPlan]]) -> int:
    for number, (point, batches) in enumerate(together):
        if (point.model.num_params, batches.num_tokens) == (run.num_params, run.num_tokens):
            return number
    raise PlanError(
        f"a learning rate is to be tried at {run.num_params:g} parameters and {run.num_tokens} tokens, which is no "
        "point of this design"
    )

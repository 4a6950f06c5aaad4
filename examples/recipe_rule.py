"""Two recipe rules: one that a spec names, and a published one of two variables that no spec knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from flopsfit_ds import build_plan
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.spec import validate_spec

SPEC: dict[str, Any] = {
    "name": "recipe-rule",
    "data": {"heldout_tokens": 8192},
    "model": {"context_length": 128},
    "design": {"method": "ladder", "num_params": ["200k", "800k", "3200k"], "tokens_per_parameter": [5]},
    "training": {
        "learning_rates": [4e-3],
        "learning_rate_reference_params": "200k",
        "learning_rate_exponent": -0.25,
        "global_batch_tokens": 1024,
        "precision": "fp32",
    },
    "hardware": {"device": "H100-SXM", "gpus_per_node": 1},
}


def rates() -> dict[int, float]:
    """Peak learning rate by number of parameters, as the spec's rule plans it."""
    plan = build_plan(validate_spec(SPEC, "example"))
    return {run.num_params_total: run.recipe.learning_rate for run in plan.runs}


def step_law(num_params: int, num_tokens: int) -> float:
    """Peak learning rate by parameters outside the embeddings and tokens (Li et al., 2025, arXiv:2503.04715)."""
    return 1.79 * num_params**-0.713 * num_tokens**0.307


def plan_by_rule(points: Sequence[tuple[float, float]], rule: Callable[[int, int], float]) -> SweepPlan:
    """A plan of (parameters, tokens) whose every run has the rate that a rule gives it.

    Each point is planned twice: to learn its exact sizes, and with the rate that follows. Its run id tells the rate.
    """
    plans = []
    for num_params, num_tokens in points:
        design = {"method": "points", "points": [{"num_params": num_params, "num_tokens": num_tokens}]}
        training = {"global_batch_tokens": 1024, "precision": "fp32"}
        spec = SPEC | {"design": design, "training": training}
        (run,) = build_plan(validate_spec(spec, "example")).runs
        training["learning_rates"] = [rule(run.num_params_non_embedding, run.num_tokens)]
        plans.append(build_plan(validate_spec(spec, "example")))
    return replace(plans[0], runs=tuple(run for plan in plans for run in plan.runs))


if __name__ == "__main__":
    for num_params, rate in rates().items():
        print(num_params, f"{rate:.3e}")
    for run in plan_by_rule([(2e5, 1e6), (8e5, 4e6), (8e5, 16e6)], step_law).runs:
        print(run.label, f"{run.recipe.learning_rate:.3e}")

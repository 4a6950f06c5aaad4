"""A recipe rule: the learning rate of every size follows from one measured size by a power law."""

from __future__ import annotations

from flopsfit_ds import build_plan
from flopsfit_ds.spec import validate_spec

SPEC = {
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
    """Peak learning rate by number of parameters, as planned."""
    plan = build_plan(validate_spec(SPEC, "example"))
    return {run.num_params_total: run.recipe.learning_rate for run in plan.runs}


if __name__ == "__main__":
    for num_params, rate in rates().items():
        print(num_params, f"{rate:.3e}")

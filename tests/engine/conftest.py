"""Toy sweeps: real plans, real processes, no training."""

from __future__ import annotations

import pytest

from flopsfit_ds.engine import run_sweep
from flopsfit_ds.plan.sweep_plan import build_plan
from flopsfit_ds.spec import parse_spec
from helpers.engine.toy import PROGRAM, SPEC, ToyTask


@pytest.fixture
def make_plan(tmp_path):
    """A plan of so many points; `num_gpus` are the numbers of slots allowed a point."""

    def make(num_points: int = 3, num_gpus: str = "[1]", slots: int = 2, **execution):
        points = ", ".join(f"{{num_params: 11k, num_tokens: {40 + 2 * i}k}}" for i in range(num_points))
        text = SPEC.format(root=tmp_path / "outputs", points=points, slots=slots, num_gpus=num_gpus)
        return build_plan(parse_spec(text, [f"execution.{key}={value}" for key, value in execution.items()]))

    return make


@pytest.fixture
def run_toys():
    """Run a plan's toys in this process; `tasks` are keyword arguments of each, by the number of the run."""

    def run(plan, per_run=None, common=None, **options):
        numbers = {run.run_id: i for i, run in enumerate(plan.runs)}

        def task_of(run):
            return ToyTask(run, **{**(common or {}), **(per_run or {}).get(numbers[run.run_id], {})})

        return run_sweep(plan, tasks=task_of, program=PROGRAM, **options)

    return run

"""A sweep of toys as a program of its own: `toy_sweep.py folder points num_gpus slots step_seconds [fault]`."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # started as a script, by itself


from flopsfit_ds.base.errors import FlopsfitError
from flopsfit_ds.engine import run_sweep
from flopsfit_ds.plan.sweep_plan import build_plan
from flopsfit_ds.spec import parse_spec
from helpers.engine.clock import follow_clock
from helpers.engine.toy import PROGRAM, SPEC, ToyTask


def main(arguments: list[str]) -> int:
    follow_clock()
    folder, num_points, num_gpus, slots, step_seconds = arguments[:5]
    points = ", ".join(f"{{num_params: 11k, num_tokens: {40 + 2 * i}k}}" for i in range(int(num_points)))
    text = SPEC.format(root=folder, points=points, slots=slots, num_gpus=num_gpus)
    plan = build_plan(parse_spec(text, arguments[5:]))
    try:
        tasks = functools.partial(
            ToyTask, step_seconds=float(step_seconds), held_until=os.environ.get("TOY_HELD_UNTIL")
        )
        records = run_sweep(plan, tasks=tasks, program=PROGRAM, executor=os.environ.get("TOY_EXECUTOR", "auto"))
    except FlopsfitError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    sys.stdout.write(f"losses {[record.loss for record in records]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main([argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]))

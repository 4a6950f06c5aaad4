"""A sweep of toys as a program of its own: `toy_sweep.py folder points num_gpus slots step_seconds [fault]`."""

from __future__ import annotations

import functools
import os
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # started as a script, by itself


from flopsfit_ds.base.errors import FlopsfitError
from flopsfit_ds.engine import run_sweep
from flopsfit_ds.plan.sweep_plan import build_plan
from flopsfit_ds.spec import parse_spec
from helpers.engine.clock import follow_clock
from helpers.engine.toy import PROGRAM, SPEC, ToyTask
from helpers.forking import write_to


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


def run_forked(log: Path, environment: dict[str, str], arguments: list[str]) -> int:
    """As if this were started as a script in a session of its own, with what a test's forking server has imported."""
    os.setsid()
    write_to(log)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [__file__, *arguments]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.modules["__main__"].__file__ = __file__
    return main(arguments)


if __name__ == "__main__":
    sys.exit(main([argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]))

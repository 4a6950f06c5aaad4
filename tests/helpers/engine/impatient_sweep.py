"""A sweep of toys on two nodes with short patience; its arguments are a folder, and settings as JSON."""

from __future__ import annotations

import json
import sys
import time

from flopsfit_ds.base.errors import FlopsfitError
from flopsfit_ds.engine import run_sweep
from flopsfit_ds.engine.nodes import agent
from flopsfit_ds.engine.nodes.control import roster, store
from flopsfit_ds.plan.sweep_plan import build_plan
from flopsfit_ds.spec import parse_spec
from helpers.engine.toy import PROGRAM, SPEC, ToyTask


def main(arguments: list[str]) -> int:
    folder, settings = arguments[0], json.loads(arguments[1])
    agent.SILENCE_SECONDS = roster.SILENCE_SECONDS = settings["silence_seconds"]
    agent.JOIN_PATIENCE_SECONDS = store.JOIN_PATIENCE_SECONDS = settings["join_seconds"]
    points = ", ".join(f"{{num_params: 11k, num_tokens: {40 + 2 * i}k}}" for i in range(settings["points"]))
    text = SPEC.format(root=folder, points=points, slots=1, num_gpus=settings["num_gpus"])
    overrides = ["hardware.num_nodes=2", f"hardware.device={settings['device']}", "execution.hang_timeout=60"]
    plan = build_plan(parse_spec(text, overrides))

    def task_of(run):
        time.sleep(settings["task_seconds"])
        return ToyTask(run, held_until=settings["held_until"])

    try:
        run_sweep(plan, tasks=task_of, program=PROGRAM)
    except FlopsfitError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0

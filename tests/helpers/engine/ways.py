"""Layouts, ways and their attempts without a sweep around them."""

from __future__ import annotations

from flopsfit_ds.engine.ways import Ways
from flopsfit_ds.memory import Strategy
from flopsfit_ds.plan.layouts import Layout
from flopsfit_ds.records import Attempt


def layout(num_slots, micro_batch=8, accumulation=1, step_seconds=10.0):
    strategy = Strategy(0, num_slots, micro_batch, False, "none", "fp32")
    return Layout(strategy, accumulation, 0, 0, 0, predicted_step_seconds=step_seconds)


def ways(layouts, planned=0, reductions=()):
    return Ways("r", "r", 100, tuple(layouts), layouts[planned], tuple(reductions), 1)


def history(*ends, slots=("0",)):
    """Attempts, each an outcome and the step it began at."""
    return [
        Attempt(number, outcome, "why", slots, 0, len(slots), 8, 1, start_step, 0.0, 1.0)
        for number, (outcome, start_step) in enumerate(ends, start=1)
    ]

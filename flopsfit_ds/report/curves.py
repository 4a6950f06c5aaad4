"""Training curves of a sweep's runs, read from their metrics and thinned for the eye."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flopsfit_ds.base.errors import RecordError
from flopsfit_ds.base.storage import read_json
from flopsfit_ds.records import SweepFolder

AXES = {"tokens": "training tokens", "steps": "optimiser steps", "flops": "training FLOPs"}


@dataclass(frozen=True)
class LossCurve:
    """The training loss of one run, a value an optimiser step.

    Attributes:
        run_id: The run.
        label: For people.
        budget: Its isoFLOP budget; None for other designs.
        steps: Optimiser steps done, ascending.
        losses: Mean loss of each step's global batch, nats a token.
        learning_rates: At each step.
        gradient_norms: Before clipping; None in sweeps of earlier versions, at ZeRO-0.
        tokens_per_step: Training tokens a step.
        flops_per_step: Training FLOPs a step.
    """

    run_id: str
    label: str
    budget: float | None
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]
    gradient_norms: tuple[float | None, ...]
    tokens_per_step: float
    flops_per_step: float

    def along(self, axis: str) -> list[float]:
        """The steps in units of an axis of `AXES`."""
        scale = {"tokens": self.tokens_per_step, "steps": 1.0, "flops": self.flops_per_step}[axis]
        return [step * scale for step in self.steps]

    def smoothed(self, share: float) -> list[float]:
        """Exponentially weighted means of the losses; the first values are not drawn to any start."""
        average, weight, values = 0.0, 0.0, []
        for loss in self.losses:
            average = share * average + (1 - share) * loss
            weight = share * weight + (1 - share)
            values.append(average / weight)
        return values


def read_curves(folder: SweepFolder, run_ids: Sequence[str]) -> list[LossCurve]:
    """The curves of those runs that have trained a step, in the order given; a run without a plan has none.

    Args:
        folder: The sweep's.
        run_ids: Which runs.
    """
    return [curve for run_id in run_ids if (curve := _read(folder, run_id)) is not None]


def _read(folder: SweepFolder, run_id: str) -> LossCurve | None:
    run = folder.run(run_id)
    try:
        plan: dict[str, Any] = read_json(run.plan)
    except (FileNotFoundError, RecordError):
        return None
    lines = [line for line in run.metrics.read() if math.isfinite(line["loss"])]
    if not lines:
        return None
    return LossCurve(
        run_id=run_id,
        label=plan["label"],
        budget=plan["compute_budget_flops"],
        steps=tuple(line["step"] for line in lines),
        losses=tuple(line["loss"] for line in lines),
        learning_rates=tuple(line["learning_rate"] for line in lines),
        gradient_norms=tuple(line.get("gradient_norm") for line in lines),
        tokens_per_step=plan["global_batch_sequences"] * plan["context_length"],
        flops_per_step=plan["flops"] / plan["num_steps"],
    )


def thinned(xs: Sequence[float], ys: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """At most so many of these points, evenly along the logarithm of x, the first and the last among them."""
    if len(xs) <= most:
        return list(xs), list(ys)
    low, high = math.log(xs[0]), math.log(xs[-1])
    kept, wanted = [0], 1
    for number, x in enumerate(xs[:-1]):
        if number and math.log(x) >= low + (high - low) * wanted / (most - 1):
            kept.append(number)
            while math.log(x) >= low + (high - low) * wanted / (most - 1):
                wanted += 1
    kept.append(len(xs) - 1)
    return [xs[k] for k in kept], [ys[k] for k in kept]

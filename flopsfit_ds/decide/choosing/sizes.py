"""Sizes that the models of a sweep can have: what is chosen next is one of them."""

from __future__ import annotations

import math

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.plan.family import decoder_family
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.spec import DecoderModel
from flopsfit_ds.spec.fit_options import COUNT_FIELDS

_STEP = 1.04
"""Times larger: finer than sizes are looked at (`choose`), and than shapes of most families lie apart."""
_SMALLER, _LARGER = 30.0, 1000.0
"""Times, about the sizes of a sweep: the smallest shape lies seldom lower, a target's optimum seldom higher."""


def sizes_to_be_had(plan: SweepPlan) -> tuple[float, ...]:
    """Parameters of the models that a sweep's family can build, as its law counts them, rising.

    What is not the built-in decoder is not built to be looked at: all sizes from its smallest run on are taken.
    """
    field = COUNT_FIELDS[plan.spec.fit.parameters]
    counted = sorted(getattr(run, field) or run.num_params_total for run in plan.runs)
    totals = sorted(run.num_params_total for run in plan.runs)
    if not isinstance(plan.spec.model, DecoderModel):
        return _grid(counted[0], _LARGER * counted[-1])
    family = decoder_family(plan.spec, None)
    found: set[float] = set()
    for size in _grid(totals[0] / _SMALLER, _LARGER * totals[-1]):
        try:
            model = family.nearest(size, ())
        except PlanError:
            continue
        found.add(getattr(model, "num_params" if field == "num_params_total" else field) or model.num_params)
    return tuple(sorted(found))


def _grid(low: float, high: float) -> tuple[float, ...]:
    steps = math.ceil(math.log(high / low) / math.log(_STEP))
    return tuple(low * _STEP**k for k in range(steps + 1))

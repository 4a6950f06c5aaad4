"""What was counted of a model of transformers, kept in the user's cache: the next plan of the same spec finds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from pydantic import ValidationError

from flopsfit_ds.base.storage import json_converter
from flopsfit_ds.model.architecture import HfShape
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan
from flopsfit_ds.simulate.cache import content_key, load_result, store_result
from flopsfit_ds.simulate.profile import ClassMeasurement
from flopsfit_ds.spec import Training


def kept_measurement(
    shape: HfShape, training: Training, optimizer: OptimizerPlan | None, measure: Callable[[], ClassMeasurement]
) -> ClassMeasurement:
    """A model's measurement, from the cache where it was made before by the same code and libraries.

    With an optimiser of the user's own it is made each time: what that does is not known.

    Args:
        shape: Of the model; it names the version of transformers.
        training: The spec's section; its precision and frozen parameters are part of what is measured.
        optimizer: What trains the model.
        measure: Makes it.
    """
    if optimizer is not None and optimizer.factory:
        return measure()
    plan = None if optimizer is None else asdict(optimizer)
    key = content_key("counted", asdict(shape), training.precision, list(training.frozen_parameters), plan)
    converter, stored = json_converter(ClassMeasurement), load_result(key)
    if stored is not None:
        try:
            return converter.validate_python(stored)
        except ValidationError:  # torn, yet JSON: it is made and written anew
            pass
    measured = measure()
    store_result(key, converter.dump_python(measured, mode="json"))
    return measured

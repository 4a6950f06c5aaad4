"""Scaling laws from finished runs: the law, its intervals and what it predicts. Sees records or any table, never
training.

The names below are imported when first used, so that importing the package does not import numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flopsfit_ds.fit.forecast.isoflop import isoflop_minima
    from flopsfit_ds.fit.forecast.prediction import predict
    from flopsfit_ds.fit.further.forms import ColumnFit, fit_column
    from flopsfit_ds.fit.points.points import Point, points_from_records
    from flopsfit_ds.fit.points.reading import load_points
    from flopsfit_ds.fit.preview import PlannedPoint, PriorLaw, preview_design
    from flopsfit_ds.fit.result import ScalingFit, load_prediction_model
    from flopsfit_ds.fit.scaling import fit_scaling_law

_HOMES = {
    "ColumnFit": "further.forms",
    "fit_column": "further.forms",
    "Point": "points.points",
    "ScalingFit": "result",
    "fit_scaling_law": "scaling",
    "isoflop_minima": "forecast.isoflop",
    "load_points": "points.reading",
    "load_prediction_model": "result",
    "points_from_records": "points.points",
    "PlannedPoint": "preview",
    "PriorLaw": "preview",
    "predict": "forecast.prediction",
    "preview_design": "preview",
}

__all__ = [
    "ColumnFit",
    "PlannedPoint",
    "Point",
    "PriorLaw",
    "ScalingFit",
    "fit_column",
    "fit_scaling_law",
    "isoflop_minima",
    "load_points",
    "load_prediction_model",
    "points_from_records",
    "predict",
    "preview_design",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

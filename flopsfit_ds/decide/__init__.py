"""What to do with fits: register forecasts and score them, audit a table, compare two recipes, choose the next runs.

The names below are imported when first used, so that importing the package does not import numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flopsfit_ds.decide.audit.checklist import audit_runs
    from flopsfit_ds.decide.choosing.choose import choose_next
    from flopsfit_ds.decide.comparing.compare import compare_runs
    from flopsfit_ds.decide.forecasts.registered import load_forecast, register_forecast
    from flopsfit_ds.decide.forecasts.scoring import score_forecast, summarise
    from flopsfit_ds.decide.sources import read_sources

_HOMES = {
    "audit_runs": "audit.checklist",
    "choose_next": "choosing.choose",
    "compare_runs": "comparing.compare",
    "load_forecast": "forecasts.registered",
    "read_sources": "sources",
    "register_forecast": "forecasts.registered",
    "score_forecast": "forecasts.scoring",
    "summarise": "forecasts.scoring",
}

__all__ = [
    "audit_runs",
    "choose_next",
    "compare_runs",
    "load_forecast",
    "read_sources",
    "register_forecast",
    "score_forecast",
    "summarise",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

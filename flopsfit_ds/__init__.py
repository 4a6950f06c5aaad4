"""Plan, train under DeepSpeed and fit scaling-law sweeps of large models.

The five steps are functions: `load_spec`, `build_plan`, `run_sweep`, `fit_scaling_law`, `write_report`; `find_optimal`
takes a model class, a dataset and a loss function through all of them. Each is imported when it is first used, so that
planning never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flopsfit_ds.fit import fit_scaling_law
    from flopsfit_ds.report import write_report
    from flopsfit_ds.spec import load_spec
    from flopsfit_ds.study.optimal import find_optimal
    from flopsfit_ds.study.steps import build_plan, run_sweep

__version__ = "0.1.0"

__all__ = ["__version__", "build_plan", "find_optimal", "fit_scaling_law", "load_spec", "run_sweep", "write_report"]

_HOMES = {
    "load_spec": "flopsfit_ds.spec",
    "build_plan": "flopsfit_ds.study.steps",
    "run_sweep": "flopsfit_ds.study.steps",
    "fit_scaling_law": "flopsfit_ds.fit",
    "write_report": "flopsfit_ds.report",
    "find_optimal": "flopsfit_ds.study.optimal",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

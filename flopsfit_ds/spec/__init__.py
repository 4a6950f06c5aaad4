"""The sweep spec: YAML to a valid, frozen `SweepSpec`. Names are imported when first used: pydantic takes time."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flopsfit_ds.spec.loading import load_spec, parse_spec, spec_json_schema, validate_spec
    from flopsfit_ds.spec.sections import (
        ClassModel,
        DatasetData,
        DecoderModel,
        DesignPoint,
        Execution,
        Fit,
        Hardware,
        IsoflopDesign,
        LadderDesign,
        PlacementRules,
        PointsDesign,
        StdlibData,
        SweepSpec,
        TextData,
        TokenData,
        Training,
    )

_OF_LOADING = ("load_spec", "parse_spec", "spec_json_schema", "validate_spec")

__all__ = [
    "ClassModel",
    "DatasetData",
    "DecoderModel",
    "DesignPoint",
    "Execution",
    "Fit",
    "Hardware",
    "IsoflopDesign",
    "LadderDesign",
    "PlacementRules",
    "PointsDesign",
    "StdlibData",
    "SweepSpec",
    "TextData",
    "TokenData",
    "Training",
    "load_spec",
    "parse_spec",
    "spec_json_schema",
    "validate_spec",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "loading" if name in _OF_LOADING else "sections"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)

"""The sweep spec: YAML to a valid, frozen `SweepSpec`. Names are imported when first used: pydantic takes time."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flopsfit_ds.spec.data import (
        DatasetData,
        FilesData,
        FolderData,
        HfData,
        LlmcData,
        MegatronData,
        MixtureData,
        StdlibData,
        TextData,
        TokenData,
    )
    from flopsfit_ds.spec.loading import load_spec, parse_spec, spec_json_schema, validate_spec
    from flopsfit_ds.spec.sections import (
        AdaptiveDesign,
        ClassModel,
        DecoderModel,
        DesignPoint,
        Execution,
        Fit,
        Hardware,
        HfModel,
        IsoflopDesign,
        LadderDesign,
        PlacementRules,
        PointsDesign,
        SweepSpec,
        Training,
    )

_OF_DATA = (
    "DatasetData", "FilesData",
    "FolderData", "HfData", "LlmcData", "MegatronData", "MixtureData", "StdlibData", "TextData", "TokenData",
)  # fmt: skip
_OF_LOADING = ("load_spec", "parse_spec", "spec_json_schema", "validate_spec")

__all__ = [
    "AdaptiveDesign",
    "ClassModel",
    "DatasetData",
    "DecoderModel",
    "DesignPoint",
    "Execution",
    "FilesData",
    "Fit",
    "FolderData",
    "Hardware",
    "HfData",
    "HfModel",
    "IsoflopDesign",
    "LadderDesign",
    "LlmcData",
    "MegatronData",
    "MixtureData",
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
    home = "loading" if name in _OF_LOADING else "data" if name in _OF_DATA else "sections"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)

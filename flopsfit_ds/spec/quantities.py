"""Numbers of a spec: with units, within bounds, and as the JSON Schema tells editors of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from flopsfit_ds.base.units import parse_bytes, parse_count, parse_quantity, parse_seconds
from flopsfit_ds.spec.fit_options import DEFAULTS, LEAST_RESAMPLES

Name = Annotated[str, Field(pattern=r"^[a-z0-9_][a-z0-9._-]{0,63}$")]
_NO_MINUS = r"^\s*[^-\s]"


def number_schema(examples: list[Any], **bounds: float) -> WithJsonSchema:
    """For editors: a number within bounds, or the same as text with a unit; text without a minus where none may be."""
    text = {"type": "string", "pattern": _NO_MINUS} if bounds else {"type": "string"}
    return WithJsonSchema({"anyOf": [{"type": "number", **bounds}, text], "examples": examples})


_LARGEST = 1e45
"""Far above all FLOPs ever computed, and products of several such numbers are still numbers."""


def _positive(value: float) -> float:
    if not 0 < value <= _LARGEST:
        raise ValueError(f"{value:g} must be greater than 0" if value <= 0 else f"{value:g} is beyond {_LARGEST:g}")
    return value


def _at_least_zero(value: float) -> float:
    if not 0 <= value <= _LARGEST:
        raise ValueError(f"{value:g} must be 0 or more" if value < 0 else f"{value:g} is beyond {_LARGEST:g}")
    return value


def _fraction(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{value:g} must lie between 0 and 1")
    return value


def _open_fraction(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{value:g} must be 0 or more and less than 1")
    return value


def _probability(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{value:g} must be greater than 0 and less than 1")
    return value


def _resamples(value: int) -> int:
    if value != 0 and value < LEAST_RESAMPLES:
        raise ValueError(
            f"{value} must be 0 for none, or {LEAST_RESAMPLES} or more; {DEFAULTS.bootstrap_samples} is usual"
        )
    return value


def _seed(value: int) -> int:
    if not 0 <= value < 2**32:
        raise ValueError(f"{value} must be 0 or more and less than 2^32")
    return value


_ABOVE_ZERO = {"exclusiveMinimum": 0}  # of JSON schema
_FROM_ZERO = {"minimum": 0}  # of JSON schema
Quantity = Annotated[
    float, AfterValidator(_positive), BeforeValidator(parse_quantity), number_schema([1e18, "300B"], **_ABOVE_ZERO)
]
NonNegative = Annotated[
    float, AfterValidator(_at_least_zero), BeforeValidator(parse_quantity), number_schema([0.1], **_FROM_ZERO)
]
Fraction = Annotated[
    float, AfterValidator(_fraction), BeforeValidator(parse_quantity), number_schema([0.05], minimum=0, maximum=1)
]
OpenFraction = Annotated[
    float,
    AfterValidator(_open_fraction),
    BeforeValidator(parse_quantity),
    number_schema([0.9], minimum=0, exclusiveMaximum=1),
]
Probability = Annotated[
    float,
    AfterValidator(_probability),
    BeforeValidator(parse_quantity),
    number_schema([0.9], exclusiveMinimum=0, exclusiveMaximum=1),
]
Count = Annotated[
    int, AfterValidator(_positive), BeforeValidator(parse_count), number_schema([1024, "64k"], **_ABOVE_ZERO)
]
Resamples = Annotated[
    int,
    AfterValidator(_resamples),
    BeforeValidator(parse_count),
    number_schema([0, DEFAULTS.bootstrap_samples], **_FROM_ZERO),
]
Bytes = Annotated[int, AfterValidator(_positive), BeforeValidator(parse_bytes), number_schema(["80GiB"], **_ABOVE_ZERO)]
Seconds = Annotated[
    float, AfterValidator(_positive), BeforeValidator(parse_seconds), number_schema([90, "15m", "2h"], **_ABOVE_ZERO)
]
Seed = Annotated[int, AfterValidator(_seed), BeforeValidator(parse_count), number_schema([0, 1], **_FROM_ZERO)]


def _as_text(value: Any) -> str:
    """A mapping as JSON text, which has one form and can be hashed."""
    if value == "":
        return ""
    if not isinstance(value, Mapping):
        raise ValueError("this takes a mapping of keys, such as {zero_optimization: {reduce_bucket_size: 5e7}}")
    return json.dumps(value, sort_keys=True) if value else ""


JsonMapping = Annotated[
    str,
    BeforeValidator(_as_text),
    PlainSerializer(lambda text: json.loads(text) if text else {}, return_type=dict[str, Any]),
    WithJsonSchema({"type": "object", "examples": [{"zero_optimization": {"reduce_bucket_size": 50000000}}]}),
]

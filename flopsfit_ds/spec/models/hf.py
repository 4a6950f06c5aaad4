"""A model by its name in transformers: any causal language model, from its configuration alone."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from flopsfit_ds.spec.quantities import Count, Quantity
from flopsfit_ds.spec.section import Section

_FIELD = r"^[A-Za-z_]\w*$"
_POWER_OF_TEN = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def _numbers_of_texts(value: Any) -> Any:
    """The same with texts such as `1e6` as numbers: YAML reads a number without a point and a sign as text."""
    if isinstance(value, dict):
        return {key: _numbers_of_texts(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers_of_texts(each) for each in value]
    if isinstance(value, str) and _POWER_OF_TEN.fullmatch(value):
        number = float(value)
        return int(number) if number.is_integer() and "." not in value else number
    if value is not None and not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r} is no text, number, list or mapping, of which a configuration is made")
    return value


class Growth(Section):
    """How a field of a configuration follows from the size parameter."""

    ratio: Quantity
    """Its value over that of the size parameter."""
    multiple_of: Count = 1
    """It is rounded to a multiple of this, and is no less."""


class HfModel(Section):
    """A causal language model of transformers, built from its configuration: nothing is downloaded, no code is run.

    It starts from the defaults of an architecture, from a `config.json` or from the shape of a published model, of
    which one is given. Sizes then grow by width: depth, heads and inner widths keep their ratio to it.
    """

    family: Literal["hf"]
    architecture: str | None = None
    """The `model_type` of transformers, such as `llama`, with the defaults of its configuration."""
    config: str | None = None
    """A `config.json`, relative to the spec."""
    like: str | None = None
    """A published model, such as `qwen3-0.6b`; an unknown one is answered with all names."""
    fields: Annotated[dict[str, Any], BeforeValidator(_numbers_of_texts)] = Field(default={})
    """Fields of the configuration that are the same at all sizes, by transformers' names."""
    grow: dict[Annotated[str, Field(pattern=_FIELD)], Growth] = Field(default={})
    """Further fields that grow with the size parameter, such as a number of experts; they replace the usual rule."""
    size_parameter: Annotated[str, Field(pattern=_FIELD)] = "hidden_size"
    """The field that grows the model: the width, or any other that holds a number."""
    size_multiple_of: Count | None = None
    """The size parameter is a multiple of this; without it, of the width of the heads that share keys and values."""
    width_per_layer: Quantity | None = None
    """Aimed ratio of width to number of layers; without it, that of the configuration it starts from."""
    head_dim: Count | None = None
    """Width of one attention head; without it, that of the configuration it starts from."""
    vocab_size: Count | None = None
    """Number of token ids, 256 for bytes; without it, that of the configuration it starts from."""
    context_length: Count = 1024
    """Tokens a sequence; learned positions are as many, unless `fields` says otherwise."""
    approximate_flops: bool = False
    """Whether FLOPs may be 6 N D where the model's operations cannot be counted; without it, that is an error."""

    @model_validator(mode="before")
    @classmethod
    def _sees_all(cls, data: Any) -> Any:
        if isinstance(data, dict) and "attention_across_documents" in data:
            raise ValueError(
                "attention_across_documents is of the built-in decoder (family: decoder); models of transformers see "
                "all of a sequence: leave it out"
            )
        return data

    @model_validator(mode="after")
    def _one_start(self) -> HfModel:
        given = [name for name in ("architecture", "config", "like") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"found {' and '.join(given) or 'none of them'}; give one of architecture (such as llama), config (a "
                "config.json) and like (a published model, such as qwen3-0.6b)"
            )
        for name in self.grow:
            if name in self.fields:
                raise ValueError(f"{name} stands in grow and in fields; keep one of the two")
        if self.size_parameter in self.fields:
            raise ValueError(
                f"{self.size_parameter} is the size parameter, which the design sets; leave it out of fields"
            )
        return self

"""The configuration that sizes grow from: an architecture's defaults, a `config.json` or a published shape."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.base.storage import KIND_WORDS, kind_of
from flopsfit_ds.base.text import shown
from flopsfit_ds.model.published import PUBLISHED
from flopsfit_ds.spec import HfModel
from flopsfit_ds.train.model.hf import hf_config

_OURS = {
    "vocab_size": "model.vocab_size",
    "head_dim": "model.head_dim",
    "use_cache": "nothing: training keeps no cache",
    "dtype": "training.precision",
    "torch_dtype": "training.precision",
    "model_type": "model.architecture",
}
"""Fields that the spec says in its own words."""
_OLD_NAMES = ("rope_theta", "rope_scaling")
"""Of `rope_parameters`, in configurations of transformers before 5."""
_READ_WITHOUT_A_FIELD = ("head_dim",)
"""What models look for though their configuration declares no such field: Qwen3's mixture of experts."""
_NOT_OF_THE_SHAPE = (
    "architectures", "auto_map", "quantization_config", "transformers_version", "_name_or_path", "id2label",
    "label2id", "bos_token_id", "eos_token_id", "pad_token_id", "transformers.js_config",
)  # fmt: skip
"""Of a file: what has no part in a model of fp32 parameters that is trained from nothing on any tokens."""


@dataclass(frozen=True)
class Start:
    """Where sizes grow from.

    Attributes:
        architecture: The `model_type`.
        values: What is set beyond the architecture's defaults, by the names of the configuration itself.
        config: The configuration with these values.
        warnings: What was left out.
    """

    architecture: str
    values: Mapping[str, Any]
    config: PreTrainedConfig
    warnings: tuple[str, ...] = ()

    def name_of(self, field: str) -> str | None:
        """The configuration's own name of a field, which may go by a common one; None where it has no such field."""
        own = self.config.attribute_map.get(field, field)
        return own if own in _known(self.config) else None

    def get(self, field: str) -> Any:
        """The value of a field; None where there is none."""
        return None if self.name_of(field) is None else getattr(self.config, field, None)

    def own_fields(self) -> set[str]:
        """Names that the configuration's constructor takes; others that it has, it derives."""
        return set(inspect.signature(type(self.config)).parameters)

    def checked(self, field: str, where: str) -> str:
        """The configuration's own name of a field that the spec sets.

        Raises:
            SpecError: It has none, which transformers would keep without a word; or the spec says it elsewhere.
        """
        if field in _OURS:
            raise SpecError(f"model.{where}.{field}: write {_OURS[field]} instead")
        own = self.name_of(field)
        if own is None:
            known = sorted(_known(self.config) | set(self.config.attribute_map))
            raise SpecError(
                f"model.{where}.{field}: the configuration of {self.architecture} has no such field"
                f"{_nearest(field, known)}"
            )
        return own


def read_start(model: HfModel, folder: Path) -> Start:
    """The start that a spec names.

    Args:
        model: The spec's section.
        folder: That `config` is relative to.

    Raises:
        SpecError: No such architecture or published model, or the file describes no causal language model.
    """
    if model.architecture is not None:
        architecture, given, where = model.architecture, {}, "model.architecture"
    elif model.like is not None:
        where = "model.like"
        if model.like not in PUBLISHED:
            raise SpecError(
                f"{where}: found {shown(model.like)}{_nearest(model.like, list(PUBLISHED))}; known: "
                f"{', '.join(PUBLISHED)}"
            )
        architecture, given = PUBLISHED[model.like].architecture, dict(PUBLISHED[model.like].fields)
    else:
        assert model.config is not None
        where = f"model.config: {model.config}"
        architecture, given = _read_file(folder / model.config, where)
    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise SpecError(
            f"{where}: {shown(architecture)} is no causal language model of the installed transformers"
            f"{_nearest(architecture, list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))}"
        )
    plain = make_config(architecture, {}, where)
    known = _known(plain) | set(plain.attribute_map) | {*_OLD_NAMES, *_READ_WITHOUT_A_FIELD}
    left_out = sorted(set(given) - known - set(_NOT_OF_THE_SHAPE) - set(_OURS))
    values = {
        plain.attribute_map.get(name, name): value
        for name, value in given.items()
        if name in known and name not in _NOT_OF_THE_SHAPE and name not in ("use_cache", "dtype", "torch_dtype")
    }
    config = make_config(architecture, values, where)
    if [name for name in _OLD_NAMES if values.pop(name, None) is not None]:
        values["rope_parameters"] = config.to_dict()["rope_parameters"]
    said = f"{where}: left out, for the configuration of {architecture} knows no {', '.join(left_out)}"
    return Start(architecture, values, config, (said,) if left_out else ())


def make_config(architecture: str, values: Mapping[str, Any], where: str) -> PreTrainedConfig:
    """The configuration with these values.

    Raises:
        SpecError: The library refuses one.
    """
    try:
        return hf_config(architecture, values)
    except Exception as error:  # of whatever kind the library's own checks raise
        reason = " ".join(str(error).split())
        raise SpecError(f"{where}: transformers refuses this configuration of {architecture}: {reason}") from error


def _read_file(path: Path, where: str) -> tuple[str, dict[str, Any]]:
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{where}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        kind = kind_of(path)
        found = str(error) if kind is None else f"it is {KIND_WORDS[kind]}"
        raise SpecError(f"{where}: this is not the JSON of a model's configuration: {found}") from error
    if not isinstance(values, dict):
        raise SpecError(f"{where}: a configuration is a mapping; found {type(values).__name__}")
    inner = values.get("text_config")
    if isinstance(inner, dict) and "model_type" in inner:  # of a model that reads more than text
        values = inner
    architecture = values.pop("model_type", None)
    if not isinstance(architecture, str):
        raise SpecError(f"{where}: it has no model_type; add the one that transformers knows it by, such as llama")
    return architecture, values


def _known(config: PreTrainedConfig) -> set[str]:
    """Names of the fields that a configuration has."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    taken = inspect.signature(type(config)).parameters.values()
    return set(config.to_dict()) | {parameter.name for parameter in taken if parameter.kind not in kinds}


def _nearest(word: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""

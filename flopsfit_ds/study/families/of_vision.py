"""A vision-language model at its own size, and what is left to train where only some of its parameters are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.model.architecture import HfShape
from flopsfit_ds.plan.family import SizedModel, all_but
from flopsfit_ds.simulate.profile import LOOKED_AT_SAMPLES, profile_class
from flopsfit_ds.spec.training import Precision
from flopsfit_ds.study.families.hf_start import make_config
from flopsfit_ds.study.families.measured import sized_model
from flopsfit_ds.study.families.of_hf import ModelBuilder
from flopsfit_ds.train.data.tokens import language_model_loss
from flopsfit_ds.train.model.hf import build_from_config, config_hash, library, reads_images

_NOT_OF_THE_MODEL = ("model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map")


def vision_language_values(path: Path) -> dict[str, Any] | None:
    """What a `config.json` says, if it is of a model that reads images; None of any other file."""
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # said where the file is read as a language model's
    known = isinstance(values, dict) and isinstance(values.get("model_type"), str) and "vision_config" in values
    return values if known else None


def look_at_vision_language(
    values: dict[str, Any], where: str, context_length: int, precision: Precision, trained: Sequence[str]
) -> tuple[SizedModel, tuple[str, ...], list[str]]:
    """The model, the names of what is frozen, and what could not be measured.

    Args:
        values: Of its configuration.
        where: That is, for errors.
        context_length: Tokens of a sequence: those of one image, and text.
        precision: Of training.
        trained: Glob patterns of the parameters that are trained.

    Raises:
        SpecError: It is no such model of the installed library, or a pattern matches nothing.
        PlanError: Its FLOPs cannot be counted.
    """
    architecture = values["model_type"]
    fields = {name: value for name, value in values.items() if name not in _NOT_OF_THE_MODEL}
    try:
        config = make_config(architecture, fields, where)
    except ValueError as error:
        raise SpecError(f"{where}: {error}") from error
    if not reads_images(config):
        raise SpecError(f"{where}: {architecture!r} is no model of images and text of the installed transformers")
    with torch.device("meta"):
        names = [name for name, _ in build_from_config(config).named_parameters()]
    frozen = all_but(names, trained)
    text = config.get_text_config()
    shape = HfShape(
        architecture, json.dumps(fields, sort_keys=True), config_hash(config), library(), text.vocab_size,
        context_length,
    )  # fmt: skip
    tokens = (torch.arange(LOOKED_AT_SAMPLES * context_length) % text.vocab_size).view(LOOKED_AT_SAMPLES, -1)
    measured = profile_class(
        ModelBuilder(architecture),
        fields,
        samples=(tokens, tokens),
        loss=lambda module, batch: language_model_loss(shape, module, batch),
        precision=precision,
        frozen_parameters=frozen,
        tokens_per_sample=context_length,
    )
    warnings: list[str] = []
    sized = sized_model(
        architecture, shape, measured, tokens_per_sample=context_length, approximate_flops=False,
        sized_by_active=False, moved_from_head=False, warnings=warnings,
    )  # fmt: skip
    return sized, frozen, warnings

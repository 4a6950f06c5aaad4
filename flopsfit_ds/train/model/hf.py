"""Models of transformers by configuration: built here, never downloaded, never by code that is not the library's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    PreTrainedConfig,
)
from transformers.initialization import no_init_weights

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.model.architecture import HfShape
from flopsfit_ds.train.model.mup import scale_module
from flopsfit_ds.train.model.vision import VisionLanguage

_SAYS_NOTHING_OF_THE_MODEL = ("transformers_version", "_name_or_path", "architectures", "id2label", "label2id")


def library() -> str:
    """Whose code the models are."""
    return f"transformers {transformers.__version__}"


def hf_config(architecture: str, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of an architecture with some of its fields set; it keeps no cache, which training never reads.

    Raises:
        Exception: Whatever the library refuses a value with.
    """
    config = AutoConfig.for_model(architecture, **fields)
    config.use_cache = False
    return config


def config_hash(config: PreTrainedConfig) -> str:
    """Hash of all that a configuration says of a model, defaults among it."""
    values = {name: value for name, value in config.to_dict().items() if name not in _SAYS_NOTHING_OF_THE_MODEL}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def build_from_config(config: PreTrainedConfig) -> nn.Module:
    """A causal language model of fp32 parameters, its weights drawn as the library draws them.

    Or one of images and text, whose weights are not drawn.

    The class is called, not its `from_config`: where DeepSpeed's ZeRO-3 is configured, that builds partitioned modules,
    whose weights are others than those at every other stage.
    """
    config.dtype = None
    if reads_images(config):
        with no_init_weights():  # it is looked at, and never trained here: torch's `trunc_normal_` reads values
            whole = cast("Any", MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)])(config)
        whole.tie_weights()
        model = VisionLanguage(whole)
    else:
        model = cast("Any", MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])(config)
    model.train()
    return model


def reads_images(config: PreTrainedConfig) -> bool:
    """Whether it is of a model of images and text, and of no causal language model."""
    kinds = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    return [type(config) in kind for kind in kinds] == [True, False]


def recomputes_blocks(model: nn.Module) -> bool:
    """Whether transformers can recompute a model's blocks in the backward pass, and that changes no loss.

    A router's outputs are recorded in the forward pass of its block, which would run twice: where they have a part in
    the loss, blocks are kept.
    """
    config = getattr(model, "config", None)
    return bool(getattr(model, "supports_gradient_checkpointing", False)) and not router_loss_weight(config)


def recompute_blocks(model: nn.Module) -> None:
    """Have the library recompute blocks, by its own switch, which earlier versions call otherwise."""
    options = {"use_reentrant": False}
    switch: Any = getattr(model, "activation_checkpointing_enable", None)
    if switch is not None:
        switch(activation_checkpointing_kwargs=options)
    else:
        getattr(model, "gradient_checkpointing_enable")(gradient_checkpointing_kwargs=options)  # noqa: B009


def build_hf(shape: HfShape, activation_checkpointing: bool = False) -> nn.Module:
    """The model of a shape.

    Args:
        shape: The model's.
        activation_checkpointing: Whether its blocks are recomputed in the backward pass.

    Raises:
        DataError: The installed library makes another configuration of its fields than the one that was planned.
    """
    config = hf_config(shape.architecture, json.loads(shape.fields))
    if config_hash(config) != shape.config_hash:
        raise DataError(
            f"{shape.architecture}: {library()} makes another model of this configuration than {shape.library}, with "
            "which it was planned; install that version, or plan the sweep anew"
        )
    model = build_from_config(config)
    if shape.mup is not None:
        scale_module(model, shape.mup)
    if activation_checkpointing:
        recompute_blocks(model)
    return model


def router_loss_weight(config: PreTrainedConfig | None) -> float:
    """What the balancing loss of a mixture of experts counts: 0 where the configuration does not ask for it."""
    asked = getattr(config, "output_router_logits", False)
    return float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0) if asked else 0.0

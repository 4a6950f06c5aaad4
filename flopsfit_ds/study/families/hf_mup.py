"""muP for models of transformers: those whose blocks are Llama's."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from transformers import PreTrainedConfig

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.model.architecture import MupScales
from flopsfit_ds.plan.recipe.mup import scales
from flopsfit_ds.spec.rules import Mup

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""A norm before each branch and none after, which would undo its multiplier; all weights drawn with one deviation."""
_BRANCHES = ("model.layers.*.self_attn", "model.layers.*.mlp")


def check_architecture(mup: Mup, architecture: str, fixed: Container[str]) -> None:
    """See that the rule can be had.

    Args:
        mup: The spec's section.
        architecture: Of transformers.
        fixed: Fields of the configuration that are the same at all sizes.

    Raises:
        PlanError: The architecture is none of those, or its heads grow wider and the base's width is not given.
    """
    if architecture not in ARCHITECTURES:
        raise PlanError(
            f"training.mup: its multipliers are known for {', '.join(ARCHITECTURES)} and the built-in decoder; found "
            f"{architecture}; write mup: false"
        )
    if "num_attention_heads" in fixed and mup.base_head_dim is None:
        raise PlanError(
            "training.mup: model.fields.num_attention_heads lets heads grow with width; give mup.base_head_dim, the "
            "width of the base's heads, or leave num_attention_heads out"
        )


def scales_of_config(mup: Mup, config: PreTrainedConfig) -> MupScales:
    """How far the model of a configuration lies from the base."""
    width = int(config.hidden_size)
    head_dim = getattr(config, "head_dim", None) or width // int(config.num_attention_heads)
    return replace(scales(mup, width, int(config.num_hidden_layers), head_dim), branches=_BRANCHES)

"""Shapes of published models, to grow other sizes from; the numbers are those of the configurations they came with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedShape:
    """One model.

    Attributes:
        architecture: The `model_type` of transformers.
        fields: What its configuration sets beyond that architecture's defaults.
        num_params: All parameters, each tensor once, as counted of these fields.
        source: Where the numbers stand.
    """

    architecture: str
    fields: Mapping[str, Any]
    num_params: int
    source: str


PUBLISHED: dict[str, PublishedShape] = {
    "qwen3-0.6b": PublishedShape(
        "qwen3",
        {
            "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
            "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True,
            "rope_theta": 1000000.0,
        },
        596_049_920,
        "huggingface.co/Qwen/Qwen3-0.6B, config.json",
    ),
}  # fmt: skip

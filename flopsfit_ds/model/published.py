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


def _hub(repository: str) -> str:
    return f"huggingface.co/{repository}, config.json"


_QWEN = {"head_dim": 128, "vocab_size": 151936, "rope_theta": 1000000.0}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

PUBLISHED: dict[str, PublishedShape] = {
    "gpt2": PublishedShape("gpt2", {}, 124_439_808, _hub("openai-community/gpt2")),
    "smollm2-135m": PublishedShape(
        "llama",
        {
            "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True, "rope_theta": 100000.0,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
        },
        134_515_008,
        _hub("HuggingFaceTB/SmolLM2-135M"),
    ),
    "llama-3.2-1b": PublishedShape(
        "llama",
        {
            "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
            "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True, "rope_theta": 500000.0,
            "rope_scaling": _LLAMA3, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
        },
        1_235_814_400,
        _hub("meta-llama/Llama-3.2-1B"),
    ),
    "qwen3-0.6b": PublishedShape(
        "qwen3",
        {
            "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
            "intermediate_size": 3072, "tie_word_embeddings": True, **_QWEN,
        },
        596_049_920,
        _hub("Qwen/Qwen3-0.6B"),
    ),
    "gemma-3-1b": PublishedShape(
        "gemma3_text",
        {
            "hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
            "head_dim": 256, "intermediate_size": 6912, "sliding_window": 512, "vocab_size": 262144,
        },
        999_885_952,
        _hub("google/gemma-3-1b-pt"),
    ),
    "olmo-2-1b": PublishedShape(
        "olmo2",
        {
            "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
            "intermediate_size": 8192, "vocab_size": 100352, "rope_theta": 500000.0, "rms_norm_eps": 1e-6,
        },
        1_484_916_736,
        _hub("allenai/OLMo-2-0425-1B"),
    ),
    "mixtral-8x7b": PublishedShape("mixtral", {}, 46_702_792_704, _hub("mistralai/Mixtral-8x7B-v0.1")),
    "qwen3-30b-a3b": PublishedShape(
        "qwen3_moe",
        {
            "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
            "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, **_QWEN,
        },
        30_532_122_624,
        _hub("Qwen/Qwen3-30B-A3B"),
    ),
    # its 58 x 256 biases of the routers are no parameters in transformers, and its extra prediction layer is left out
    "deepseek-v3": PublishedShape("deepseek_v3", {}, 671_026_404_352, _hub("deepseek-ai/DeepSeek-V3")),
    "gpt-oss-20b": PublishedShape(
        "gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}, 20_914_757_184, _hub("openai/gpt-oss-20b")
    ),
    "mamba2-130m": PublishedShape(
        "mamba2",
        {
            "hidden_size": 768, "num_hidden_layers": 24, "num_heads": 24, "n_groups": 1, "vocab_size": 50288,
            "tie_word_embeddings": True,
        },
        128_989_632,
        _hub("state-spaces/mamba2-130m"),
    ),
}  # fmt: skip

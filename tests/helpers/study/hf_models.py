"""Ten architectures of transformers at toy size, each with its parameters and FLOPs by hand.

The hand counts follow `flopsfit_ds.model.flops`: a product of matrices costs two FLOPs a weight and token, scores and
mix of attention are counted over the full context or the window, and a training step is three forward passes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flopsfit_ds.model.architecture import HfShape
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.study.steps import build_plan
from helpers.sweeps import MACHINE, MICRO, spec_of, with_values

VOCAB, CONTEXT, WINDOW = 256, 32, 8
_COMMON = {"family": "hf", "vocab_size": VOCAB, "context_length": CONTEXT, "head_dim": 8, "width_per_layer": 16}
_EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True}

Config = dict[str, Any]


@dataclass(frozen=True)
class Toy:
    """An architecture.

    Attributes:
        model: The spec's section, beside what all have in common.
        num_params: A size that it is asked for.
        forward: FLOPs of the forward pass a token, by hand, from the fields of its configuration.
        idle: Parameters of experts that a token is not sent to, by hand.
    """

    model: Config
    num_params: float
    forward: Callable[[Config], float]
    idle: Callable[[Config], int] = lambda config: 0


def attention(config: Config, seen: float = CONTEXT) -> float:
    """FLOPs of a layer's attention a token, which sees so many positions."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head, shared = config.get("head_dim", width // heads), config["num_key_value_heads"]
    return 2 * (2 * width * heads * head + 2 * width * shared * head) + 4 * heads * head * seen


def head(config: Config) -> float:
    """FLOPs of the output head a token."""
    return 2 * config["hidden_size"] * VOCAB


def gated(config: Config, inner: str = "intermediate_size") -> float:
    """FLOPs of a gated layer a token, of one expert or of the whole model."""
    return 6 * config["hidden_size"] * config[inner]


def dense(config: Config, seen: float = CONTEXT) -> float:
    """FLOPs of a gated decoder a token."""
    return config["num_hidden_layers"] * (attention(config, seen) + gated(config)) + head(config)


def gpt2(config: Config) -> float:
    width = config["n_embd"]
    return config["n_layer"] * (24 * width**2 + 4 * width * CONTEXT) + 2 * width * VOCAB


def sparse(config: Config, inner: str, experts: str) -> float:
    """FLOPs of a decoder a token, each of whose layers sends it to two experts."""
    router = 2 * config["hidden_size"] * config[experts]
    return config["num_hidden_layers"] * (attention(config) + router + 2 * gated(config, inner)) + head(config)


def idle(config: Config, inner: str, experts: str, biases: int = 0) -> int:
    """Parameters of the experts that a token is not sent to."""
    each = 3 * config["hidden_size"] * config[inner] + biases
    return config["num_hidden_layers"] * (config[experts] - 2) * each


def deepseek(config: Config) -> float:
    width, heads, layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    queries, keys, values = config["q_lora_rank"], config["kv_lora_rank"], config["v_head_dim"]
    own, turned = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    matrices = width * queries + queries * heads * (own + turned) + width * (keys + turned)
    matrices += keys * heads * (own + values) + heads * values * width
    attended = 2 * matrices + 2 * heads * (own + turned + values) * CONTEXT
    first = config["first_k_dense_replace"]
    routed = 2 * width * config["n_routed_experts"] + 3 * gated(config, "moe_intermediate_size")
    return layers * attended + first * gated(config) + (layers - first) * routed + head(config)


def deepseek_idle(config: Config) -> int:
    layers = config["num_hidden_layers"] - config["first_k_dense_replace"]
    return layers * (config["n_routed_experts"] - 2) * 3 * config["hidden_size"] * config["moe_intermediate_size"]


def mamba2(config: Config) -> float:
    """Of a sequence over its tokens: within chunks every position meets every one, between chunks states are passed."""
    width, state, chunk, taps = config["hidden_size"], config["state_size"], config["chunk_size"], 4
    inner, chunks = 2 * width, CONTEXT // config["chunk_size"]
    mixed = inner + 2 * state
    projections = CONTEXT * 2 * width * (inner + mixed + config["num_heads"] + inner)
    convolution = 2 * (CONTEXT + taps - 1) * mixed * taps
    inside = 2 * CONTEXT * chunk * (config["num_heads"] * state + inner)
    across = 2 * inner * state * (2 * CONTEXT + (chunks + 1) ** 2)
    return config["num_hidden_layers"] * (projections + convolution + inside + across) / CONTEXT + head(config)


_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_DEEPSEEK = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
_WINDOWED = {"sliding_window": WINDOW, "num_hidden_layers": 2}
_PATTERN = {"layer_types": ["sliding_attention", "full_attention"]}
_HALF = (WINDOW + CONTEXT) / 2

TOYS: dict[str, Toy] = {
    "gpt2": Toy({"architecture": "gpt2", "fields": _NO_DROPOUT}, 4e4, gpt2),
    "llama": Toy({"architecture": "llama", "fields": {"num_key_value_heads": 2}}, 4e4, dense),
    "qwen3": Toy({"like": "qwen3-0.6b"}, 4e4, dense),
    "gemma3": Toy({"architecture": "gemma3_text", "fields": _WINDOWED | _PATTERN}, 6e4, lambda c: dense(c, _HALF)),
    "olmo2": Toy({"architecture": "olmo2"}, 4e4, dense),
    "mixtral": Toy(
        {"architecture": "mixtral", "fields": {"num_local_experts": 4} | _EXPERTS},
        2e5,
        lambda c: sparse(c, "intermediate_size", "num_local_experts"),
        lambda c: idle(c, "intermediate_size", "num_local_experts"),
    ),
    "qwen3-moe": Toy(
        {"architecture": "qwen3_moe", "fields": {"num_experts": 8} | _EXPERTS},
        2e5,
        lambda c: sparse(c, "moe_intermediate_size", "num_local_experts"),
        lambda c: idle(c, "moe_intermediate_size", "num_local_experts"),
    ),
    "deepseek-v3": Toy({"architecture": "deepseek_v3", "fields": _DEEPSEEK}, 2e5, deepseek, deepseek_idle),
    "gpt-oss": Toy(
        {"architecture": "gpt_oss", "fields": {"num_local_experts": 4} | _EXPERTS | _WINDOWED},
        2e5,
        # its attention is written out in products of matrices, which a window does not make smaller
        lambda c: sparse(c, "intermediate_size", "num_local_experts"),
        lambda c: idle(
            c, "intermediate_size", "num_local_experts", 2 * c["intermediate_size"] + c["hidden_size"]
        ),
    ),
    "mamba2": Toy(
        {"architecture": "mamba2", "fields": {"n_groups": 1, "state_size": 16, "chunk_size": 16}}, 4e4, mamba2
    ),
}  # fmt: skip
"""Router losses are on where transformers has them, so that they are part of what is compared."""


def toy_spec(name: str, **changes: Any) -> dict[str, Any]:
    """The values of a spec with one point of an architecture."""
    toy = TOYS[name]
    points = [{"num_params": toy.num_params, "num_tokens": 6400}]
    values = with_values(MICRO, model={**_COMMON, **toy.model}, design__points=points)
    return with_values(values, **changes)


def toy_plan(name: str, folder: Any = ".", **changes: Any) -> SweepPlan:
    """The plan of that spec."""
    return build_plan(spec_of(toy_spec(name, **changes)), spec_folder=folder, machine=MACHINE)


def config_of(run: RunPlan) -> Config:
    """The fields of a run's configuration that were set."""
    assert isinstance(run.model, HfShape)
    return json.loads(run.model.fields)

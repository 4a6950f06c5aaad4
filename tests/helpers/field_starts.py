"""The specs that a field is changed in, and changes within sections that stand in others."""

from __future__ import annotations

from typing import Any

from helpers.sweeps import MICRO, with_values

DECODER = with_values(
    MICRO,
    design={"method": "isoflop", "compute_budgets": [1e11, 1e13], "sizes_per_budget": 3},
    training__global_batch_tokens=1024,
    training__learning_rate_reference_params=1e5,
)
CLASS = with_values(
    DECODER,
    model={
        "family": "class",
        "class_path": "helpers.class_models:Bigram",
        "size_parameter": "width",
        "context_length": 16,
    },
)
HF = with_values(
    DECODER,
    model={"family": "hf", "architecture": "llama", "head_dim": 8, "vocab_size": 256, "context_length": 16},
    design={"method": "points", "points": [{"num_params": 1e5, "num_tokens": 1e5}]},
)
FEW_LAYERS = with_values(CLASS, design={"method": "points", "points": [{"num_params": 6000, "num_tokens": 1e5}]})
ADAPTIVE = with_values(
    DECODER, design={"method": "adaptive", "compute_budgets": [1e11, 1e13], "sizes_per_budget": 3, "gpu_hours": 1}
)
LADDER = with_values(
    DECODER, design={"method": "ladder", "num_params": [2e4, 1e5], "tokens_per_parameter": [10.0, 20.0]}
)
POINTS = with_values(
    DECODER,
    design={
        "method": "points",
        "points": [{"num_params": 2e4, "num_tokens": 1e6}, {"num_params": 2e4, "compute": 1e12}],
    },
)
CLUSTER = with_values(
    DECODER,
    model={"vocab_size": 256, "context_length": 1024},
    data={},
    design={"method": "points", "points": [{"num_params": 5e9, "num_tokens": 1e9}]},
    training__global_batch_tokens=2**20,
    training__precision="bf16",
    hardware={"device": "H100-SXM", "gpus_per_node": 8, "num_nodes": 2, "host_memory": "1TiB"},
    placement={"num_gpus": [16]},
)
FREE = with_values(CLUSTER, placement=None)

UNSCALED = with_values(DECODER, training={"global_batch_tokens": 1024, "precision": "fp32"})

RULED = with_values(
    DECODER,
    training={
        "precision": "fp32",
        "schedule": "wsd-s",
        "learning_rate": {
            "rule": "custom",
            "reference": {"learning_rate": 1e-2, "num_params": 1e5, "num_tokens": 1e6, "global_batch_tokens": 1024},
            "params_exponent": -0.3, "tokens_exponent": -0.1, "batch_exponent": 0.5,
        },
        "global_batch": {
            "rule": "custom",
            "reference": {"global_batch_tokens": 1024, "num_params": 1e5, "num_tokens": 1e6},
            "params_exponent": 0.1, "tokens_exponent": 0.2,
        },
        "epsilon_reference": {"epsilon": 1e-8, "global_batch_tokens": 1024, "num_tokens": 1e6},
    },
)  # fmt: skip


def rate(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A change within the rule of the learning rate."""
    return RULED, {"training__learning_rate": RULED["training"]["learning_rate"] | changes}


TUNE = {"num_params": [1e4, 4e4], "multipliers": [0.5, 1, 2]}


def tuned(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A change of the sweep that finds the multiplier; the plan says how many runs and FLOPs it has."""
    return with_values(RULED, **rate(tune=TUNE)[1]), rate(tune=TUNE | changes)[1]


def rate_reference(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A change of the point that the rule of the learning rate starts from."""
    return rate(reference=RULED["training"]["learning_rate"]["reference"] | changes)


def batch(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A change within the rule of the batch."""
    return RULED, {"training__global_batch": RULED["training"]["global_batch"] | changes}


def batch_reference(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A change of the point that the rule of the batch starts from."""
    return batch(reference=RULED["training"]["global_batch"]["reference"] | changes)


def mup(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A change of the base of muP."""
    return with_values(UNSCALED, training__mup={"base_width": 16}), {"training__mup": {"base_width": 16} | changes}


def epsilon(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A change of the point whose epsilon is known."""
    return RULED, {"training__epsilon_reference": RULED["training"]["epsilon_reference"] | changes}


LINES = with_values(DECODER, data={"source": "jsonl", "paths": ["lines.jsonl"], "heldout_tokens": 1000})
CHUNKS = with_values(DECODER, data={"source": "litdata", "path": "chunked/lit_dict", "heldout_tokens": 1000})
SAVED = with_values(
    DECODER, data={"source": "hf", "path": "saved", "split": "train", "heldout_tokens": 1000, "tokenizer": "tok.json"}
)
PAIR = with_values(DECODER, data={"source": "megatron", "path": "pair", "heldout_tokens": 1000})
MIXTURE = with_values(DECODER, data={
    "source": "mixture", "weights": {"a": 0.7, "b": 0.3},
    "sources": {name: {"source": "text", "paths": [path]} for name, path in (("a", "corpus.txt"), ("b", "other.txt"))},
})  # fmt: skip
SHARDS = with_values(DECODER, data={"source": "llm.c", "paths": ["shard-*.bin"], "heldout_tokens": 1000})
KINDS = ("matrices", "embeddings", "head", "norms", "router")
OWN = with_values(DECODER, training__optimizer={"name": "factory", "factory": "helpers.own_optimizers:momentum_sgd"})
ONE_GPU = with_values(DECODER, hardware={"device": "H100-SXM", "gpus_per_node": 1})


def optimizer(name: str, base: dict[str, Any] = DECODER, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A change within the section of an optimiser."""
    section = base["training"].get("optimizer", {"name": name})
    return with_values(base, training__optimizer=section), {"training__optimizer": section | changes}


TOKENS = with_values(DECODER, data={"source": "tokens", "path": "ids.bin", "heldout_tokens": 1000})

"""For every field of a spec, a spec and a change of that field that must leave the planner, or the fit, another."""

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

# section class -> field -> (the spec to start from, what to change in it)
PLAN: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "SweepSpec": {
        "name": (DECODER, {"name": "other"}),
        "output_root": (DECODER, {"output_root": "elsewhere"}),
    },
    "DecoderModel": {
        "vocab_size": (DECODER, {"model__vocab_size": 300}),
        "context_length": (DECODER, {"model__context_length": 32}),
        "head_dim": (DECODER, {"model__head_dim": 16}),
        "width_per_layer": (DECODER, {"model__width_per_layer": 2}),
        "mlp_ratio": (DECODER, {"model__mlp_ratio": 4}),
        "mlp_multiple_of": (DECODER, {"model__mlp_multiple_of": 64}),
        "query_heads_per_kv_head": (DECODER, {"model__query_heads_per_kv_head": 2}),
        "tied_embeddings": (DECODER, {"model__tied_embeddings": False}),
        "rope_base": (DECODER, {"model__rope_base": 500}),
        "qk_norm": (DECODER, {"model__qk_norm": True}),
        "activation": (DECODER, {"model__activation": "gelu"}),
        "depth_scaled_init": (DECODER, {"model__depth_scaled_init": True}),
        "positions": (DECODER, {"model__positions": "learned"}),
        "logit_softcap": (DECODER, {"model__logit_softcap": 30}),
        "z_loss_weight": (DECODER, {"model__z_loss_weight": 1e-4}),
        "sliding_window": (DECODER, {"model__sliding_window": 8}),
        "sliding_window_pattern": (
            with_values(DECODER, model__sliding_window=8),
            {"model__sliding_window_pattern": ["global", "local"]},
        ),
        "attention_across_documents": (PAIR, {"model__attention_across_documents": False}),
    },
    "ClassModel": {
        "class_path": (CLASS, {"model__class_path": "helpers.class_models:OtherBigram"}),
        "size_parameter": (FEW_LAYERS, {"model__size_parameter": "layers"}),
        "size_multiple_of": (CLASS, {"model__size_multiple_of": 32}),
        "arguments": (CLASS, {"model__arguments": {"bias": False}}),
        "vocab_size": (CLASS, {"model__vocab_size": 200}),
        "context_length": (CLASS, {"model__context_length": 32}),
    },
    "HfModel": {
        "architecture": (HF, {"model__architecture": "olmo2"}),
        "config": (HF, {"model__architecture": None, "model__config": "llama.json"}),
        "like": (HF, {"model__architecture": None, "model__like": "qwen3-0.6b"}),
        "fields": (HF, {"model__fields": {"rope_parameters": {"rope_type": "default", "rope_theta": "1e6"}}}),
        "grow": (HF, {"model__grow": {"intermediate_size": {"ratio": 4}}}),
        "size_parameter": (
            with_values(HF, model__fields={"num_hidden_layers": 2, "num_attention_heads": 2}),
            {"model__fields": {"hidden_size": 32}, "model__size_parameter": "num_hidden_layers"},
        ),
        "size_multiple_of": (HF, {"model__size_multiple_of": 48}),
        "width_per_layer": (HF, {"model__width_per_layer": 8}),
        "head_dim": (HF, {"model__head_dim": 16}),
        "vocab_size": (HF, {"model__vocab_size": 300}),
        "context_length": (HF, {"model__context_length": 32}),
    },
    "Growth": {
        "ratio": (HF, {"model__grow": {"intermediate_size": {"ratio": 4}}}),
        "multiple_of": (
            with_values(HF, model__grow={"intermediate_size": {"ratio": 4}}),
            {"model__grow": {"intermediate_size": {"ratio": 4, "multiple_of": 100}}},
        ),
    },
    "StdlibData": {"heldout_tokens": (with_values(DECODER, data={}), {"data__heldout_tokens": 1000})},
    "TextData": {
        "paths": (DECODER, {"data__paths": ["other.txt"]}),
        "tokenizer": (DECODER, {"data__tokenizer": "tok.json"}),
        "heldout_tokens": (DECODER, {"data__heldout_tokens": 1000}),
    },
    "TokenData": {
        "path": (TOKENS, {"data__path": "other.bin"}),
        "dtype": (with_values(TOKENS, data__path="no.bin", data__num_tokens=1e6), {"data__dtype": "uint32"}),
        "heldout_tokens": (TOKENS, {"data__heldout_tokens": 2000}),
        "num_tokens": (with_values(TOKENS, data__path="no.bin", data__num_tokens=1e6), {"data__num_tokens": 2e6}),
    },
    "FilesData": {
        "paths": (LINES, {"data__paths": ["other.jsonl"]}),
        "column": (LINES, {"data__column": "title"}),
        "tokenizer": (LINES, {"data__tokenizer": "tok.json"}),
        "end_of_document": (LINES, {"data__end_of_document": 0}),
        "heldout_tokens": (LINES, {"data__heldout_tokens": 2000}),
    },
    "FolderData": {
        "path": (CHUNKS, {"data__path": "chunked/lit_txt"}),
        "column": (CHUNKS, {"data__column": "ids"}),
        "tokenizer": (CHUNKS, {"data__tokenizer": "tok.json"}),
        "end_of_document": (CHUNKS, {"data__end_of_document": 0}),
        "heldout_tokens": (CHUNKS, {"data__heldout_tokens": 2000}),
    },
    "HfData": {
        "path": (SAVED, {"data__path": "other"}),
        "split": (SAVED, {"data__split": "test"}),
        "column": (SAVED, {"data__column": "title"}),
        "tokenizer": (SAVED, {"data__tokenizer": None}),
        "end_of_document": (SAVED, {"data__end_of_document": "a"}),
        "heldout_tokens": (SAVED, {"data__heldout_tokens": 2000}),
    },
    "MegatronData": {
        "path": (PAIR, {"data__path": "other-pair.idx"}),
        "heldout_tokens": (PAIR, {"data__heldout_tokens": 2000}),
    },
    "LlmcData": {
        "paths": (SHARDS, {"data__paths": ["shard-1.bin"]}),
        "heldout_tokens": (SHARDS, {"data__heldout_tokens": 2000}),
    },
    "MixtureData": {
        "sources": (MIXTURE, {"data__sources": MIXTURE["data"]["sources"] | {"b": LINES["data"]}}),
        "weights": (MIXTURE, {"data__weights": {"a": 0.6, "b": 0.4}}),
    },
    "IsoflopDesign": {
        "compute_budgets": (DECODER, {"design__compute_budgets": [1e11, 1e12]}),
        "sizes_per_budget": (DECODER, {"design__sizes_per_budget": 4}),
        "size_span": (DECODER, {"design__size_span": 4}),
        "tokens_per_parameter": (DECODER, {"design__tokens_per_parameter": 60}),
        "tokens_per_parameter_exponent": (DECODER, {"design__tokens_per_parameter_exponent": 0.3}),
    },
    "LadderDesign": {
        "num_params": (LADDER, {"design__num_params": [2e4, 2e5]}),
        "tokens_per_parameter": (LADDER, {"design__tokens_per_parameter": [10.0, 30.0]}),
    },
    "AdaptiveDesign": {
        "compute_budgets": (ADAPTIVE, {"design__compute_budgets": [1e11, 3e11, 1e12]}),
        "sizes_per_budget": (ADAPTIVE, {"design__sizes_per_budget": 4}),
        "size_span": (ADAPTIVE, {"design__size_span": 4}),
        "tokens_per_parameter": (ADAPTIVE, {"design__tokens_per_parameter": 60}),
        "tokens_per_parameter_exponent": (ADAPTIVE, {"design__tokens_per_parameter_exponent": 0.3}),
        "gpu_hours": (ADAPTIVE, {"design__gpu_hours": 2}),
        "num_params_error": (ADAPTIVE, {"design__num_params_error": 0.1}),
        "loss_error": (ADAPTIVE, {"design__loss_error": 0.01}),
        "batches": (ADAPTIVE, {"design__batches": 2}),
        "runs_per_batch": (ADAPTIVE, {"design__runs_per_batch": 2}),
    },
    "PointsDesign": {"points": (POINTS, {"design__points": [{"num_params": 1e5, "num_tokens": 1e6}]})},
    "DesignPoint": {
        "num_params": (POINTS, {"design__points": [{"num_params": 1e5, "num_tokens": 1e6}]}),
        "num_tokens": (POINTS, {"design__points": [{"num_params": 2e4, "num_tokens": 2e6}]}),
        "compute": (POINTS, {"design__points": [{"num_params": 2e4, "compute": 2e12}]}),
    },
    "Training": {
        "global_batch_tokens": (DECODER, {"training__global_batch_tokens": 2048}),
        "learning_rates": (DECODER, {"training__learning_rates": [2e-2]}),
        "learning_rate_reference_params": (DECODER, {"training__learning_rate_reference_params": 1e6}),
        "learning_rate_exponent": (DECODER, {"training__learning_rate_exponent": -0.5}),
        "learning_rate": (RULED, {"training__learning_rate": {"rule": "porian"}}),
        "global_batch": (RULED, {"training__global_batch": {"rule": "steplaw"}}),
        "warmup_fraction": (DECODER, {"training__warmup_fraction": 0.2}),
        "warmup_tokens": (DECODER, {"training__warmup_tokens": 4096}),
        "schedule": (DECODER, {"training__schedule": "linear-to-zero"}),
        "decay_fraction": (RULED, {"training__decay_fraction": 0.3}),
        "one_trunk": (
            with_values(LADDER, training__schedule="wsd", training__warmup_tokens=4096), {"training__one_trunk": True}
        ),
        "decay_shape": (RULED, {"training__decay_shape": "linear"}),
        "decays_end_at": (RULED, {"training__decays_end_at": [0.25, 1]}),
        "weight_decay_half_life_tokens": (DECODER, {"training__weight_decay_half_life_tokens": 1e6}),
        "beta2_half_life_tokens": (DECODER, {"training__beta2_half_life_tokens": 1e5}),
        "epsilon_reference": (RULED, {"training__epsilon_reference": None}),
        "final_learning_rate_fraction": (DECODER, {"training__final_learning_rate_fraction": 0.2}),
        "weight_decay": (DECODER, {"training__weight_decay": 0.2}),
        "beta1": (DECODER, {"training__beta1": 0.8}),
        "beta2": (DECODER, {"training__beta2": 0.8}),
        "epsilon": (DECODER, {"training__epsilon": 1e-6}),
        "mup": (UNSCALED, {"training__mup": True}),
        "gradient_clipping": (DECODER, {"training__gradient_clipping": 2}),
        "precision": (DECODER, {"training__precision": "bf16"}),
        "seeds": (DECODER, {"training__seeds": [1]}),
        "seeds_at": (with_values(DECODER, training__seeds=[0, 1]), {"training__seeds_at": "some"}),
        "frozen_parameters": (DECODER, {"training__frozen_parameters": ["norm.*"]}),
        "optimizer": (DECODER, {"training__optimizer": {"name": "lion"}}),
        "tf32": (with_values(CLUSTER, training__precision="fp32"), {"training__tf32": True}),
        "compile": (DECODER, {"training__compile": "on"}),
        "data_workers": (DECODER, {"training__data_workers": 2}),
        "checkpoint_every": (DECODER, {"training__checkpoint_every": 7}),
    },
    "LearningRateRule": {
        "rule": rate(rule="marin", params_exponent=0, tokens_exponent=0, batch_exponent=0),
        "multiplier": rate(multiplier=2),
        "multipliers": rate(multipliers=[1, 2]),
        "tune": rate(tune=TUNE),
        "reference": rate_reference(learning_rate=2e-2),
        "params_exponent": rate(params_exponent=-0.2),
        "tokens_exponent": rate(tokens_exponent=-0.2),
        "batch_exponent": rate(batch_exponent=-0.2),
    },
    "Mup": {
        "base_width": mup(base_width=64),
        "base_depth": mup(base_depth=None),
        "base_head_dim": mup(base_head_dim=4),
    },
    "RateTuning": {
        "num_params": tuned(num_params=[1e4, 5e4]),
        "tokens_per_parameter": tuned(tokens_per_parameter=10),
        "multipliers": tuned(multipliers=[0.5, 1, 2, 4]),
    },
    "RateReference": {
        "learning_rate": rate_reference(learning_rate=3e-2),
        "num_params": rate_reference(num_params=2e5),
        "num_tokens": rate_reference(num_tokens=2e6),
        "global_batch_tokens": rate_reference(global_batch_tokens=2048),
    },
    "GlobalBatchRule": {
        "rule": batch(rule="d^0.383", params_exponent=0, tokens_exponent=0),
        "multiplier": batch(multiplier=2),
        "reference": batch_reference(global_batch_tokens=4096),
        "params_exponent": batch(params_exponent=0.5),
        "tokens_exponent": batch(tokens_exponent=0.5),
    },
    "BatchReference": {
        "global_batch_tokens": batch_reference(global_batch_tokens=2048),
        "num_params": batch_reference(num_params=1e8),
        "num_tokens": batch_reference(num_tokens=1e9),
    },
    "EpsilonReference": {
        "epsilon": epsilon(epsilon=1e-7),
        "global_batch_tokens": epsilon(global_batch_tokens=2048),
        "num_tokens": epsilon(num_tokens=2e6),
    },
    "GroupOptions": {
        "learning_rate_factor": optimizer("adamw", groups={"norms": {"learning_rate_factor": 0.5}}),
        "weight_decay": optimizer("adamw", groups={"norms": {"weight_decay": 0.5}}),
        "parameters": optimizer("adamw", groups={"norms": {"parameters": ["*.query.*"]}}),
    },
    "ParameterGroups": {kind: optimizer("adamw", groups={kind: {"weight_decay": 0.5}}) for kind in KINDS},
    "AdamW": {"groups": optimizer("adamw", groups={"head": {"learning_rate_factor": 2}})},
    "Muon": {
        "momentum": optimizer("muon", momentum=0.9),
        "scale": optimizer("muon", scale="original"),
        "groups": optimizer("muon", groups={"head": {"learning_rate_factor": 2}}),
    },
    "Adafactor": {
        "decay_exponent": optimizer("adafactor", decay_exponent=-0.5),
        "clip_threshold": optimizer("adafactor", clip_threshold=2),
        "groups": optimizer("adafactor", groups={"head": {"learning_rate_factor": 2}}),
    },
    "Lion": {"groups": optimizer("lion", groups={"head": {"learning_rate_factor": 2}})},
    "AdamW8bit": {"groups": optimizer("adamw8bit", ONE_GPU, groups={"head": {"learning_rate_factor": 2}})},
    "FactoryOptimizer": {
        "factory": optimizer("factory", OWN, factory="helpers.own_optimizers:plain_sgd"),
        "arguments": optimizer("factory", OWN, arguments={"momentum": 0.5}),
        "elementwise": optimizer("factory", OWN, elementwise=True),
        "groups": optimizer("factory", OWN, groups={"head": {"learning_rate_factor": 2}}),
    },
    "Hardware": {
        "device": (CLUSTER, {"hardware__device": "H200-SXM"}),
        "gpus_per_node": (FREE, {"hardware__gpus_per_node": 4}),
        "num_nodes": (FREE, {"hardware__num_nodes": 1}),
        "device_memory": (FREE, {"hardware__device_memory": "40GiB"}),
        "host_memory": (FREE, {"hardware__host_memory": "2TiB"}),
        "peak_flops": (FREE, {"hardware__peak_flops": 1e14}),
        "intra_node_bandwidth": (FREE, {"hardware__intra_node_bandwidth": 1e9}),
        "inter_node_bandwidth": (CLUSTER, {"hardware__inter_node_bandwidth": 1e9}),
        "price_per_gpu_hour": (FREE, {"hardware__price_per_gpu_hour": 2}),
    },
    "PlacementRules": {
        "zero_stages": (FREE, {"placement__zero_stages": [2]}),
        "num_gpus": (FREE, {"placement__num_gpus": [16]}),
        "offload": (FREE, {"placement__offload": "always"}),
        "activation_checkpointing": (FREE, {"placement__activation_checkpointing": "always"}),
        "max_micro_batch_size_per_gpu": (FREE, {"placement__max_micro_batch_size_per_gpu": 1}),
        "memory_margin": (FREE, {"placement__memory_margin": 0.3}),
        "points_per_gpu": (DECODER, {"placement__points_per_gpu": 4}),
        "moldable": (FREE, {"placement__moldable": False}),
        "communication": (FREE, {"placement__communication": "bf16"}),
        "deepspeed": (FREE, {"placement__deepspeed": {"zero_optimization": {"overlap_comm": False}}}),
    },
}  # fmt: skip
FIT: dict[str, Any] = {
    "law": "kaplan",
    "loss": "squared_log",
    "huber_delta": 1e-5,
    "parameters": "non-embedding",
    "bootstrap_samples": 20,
    "bootstrap": "wild",
    "level": 0.5,
    "target_compute": 1e20,
    "loss_floor": 1.0,
    "heldout": "prose",
}
TAGS = {("DecoderModel", "family"), ("ClassModel", "family"), ("IsoflopDesign", "method"), ("LadderDesign", "method")}
TAGS |= {(name, "name") for name in ("AdamW", "Muon", "Adafactor", "Lion", "AdamW8bit", "FactoryOptimizer")}
TAGS |= {("HfModel", "family")}
TAGS |= {("PointsDesign", "method"), ("StdlibData", "source"), ("TextData", "source"), ("TokenData", "source")}
TAGS |= {("AdaptiveDesign", "method")}
TAGS |= {(name, "source") for name in ("FilesData", "FolderData", "HfData", "MegatronData", "LlmcData", "MixtureData")}
"""They choose the class, and each class has entries of its own."""
NOT_FOR_FILES = {("DatasetData", name) for name in ("source", "fingerprint", "num_samples", "heldout_tokens")}
"""What `find_optimal` was handed, written down; a spec in a file cannot name it (see test_corpus)."""

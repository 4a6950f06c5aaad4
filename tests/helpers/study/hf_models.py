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


def gated(config: Config) -> float:
    """FLOPs of a gated layer a token."""
    return 2 * 3 * config["hidden_size"] * config["intermediate_size"]


def dense(config: Config) -> float:
    """FLOPs of a gated decoder a token."""
    return config["num_hidden_layers"] * (attention(config) + gated(config)) + head(config)


TOYS: dict[str, Toy] = {
    "llama": Toy({"architecture": "llama", "fields": {"num_key_value_heads": 2}}, 4e4, dense),
}


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

"""Small specs, plans and data that many tests start from."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import yaml

from flopsfit_ds.base.hardware import Machine
from flopsfit_ds.base.units import GIB
from flopsfit_ds.plan.sweep_plan import SweepPlan, build_plan
from flopsfit_ds.spec import SweepSpec, parse_spec

MACHINE = Machine("cpu", 2, None, 16 * GIB)
MICRO: dict[str, Any] = {
    "name": "micro",
    "model": {"vocab_size": 256, "context_length": 16, "head_dim": 8, "width_per_layer": 8, "tied_embeddings": True},
    "data": {"source": "text", "paths": ["corpus.txt"], "heldout_tokens": 1024},
    "design": {"method": "points", "points": [{"num_params": 6e3, "num_tokens": 12800}]},
    "training": {"global_batch_tokens": 128, "learning_rates": [1e-2], "precision": "fp32"},
    "hardware": {"device": "cpu", "gpus_per_node": 2, "host_memory": "16GiB"},
    "fit": {"bootstrap_samples": 0},
}
"""A decoder of about 6,000 parameters, trained for 100 steps of 8 sequences."""
EVERY_OPTION: dict[str, Any] = {
    "model__qk_norm": True,
    "model__activation": "gelu",
    "model__depth_scaled_init": True,
    "model__positions": "learned",
    "model__logit_softcap": 3,
    "model__z_loss_weight": 1e-2,
    "model__tied_embeddings": False,
    "model__sliding_window": 4,
    "model__sliding_window_pattern": ["local", "global"],
}
"""All that the decoder may have beyond its plain form, strong enough to show."""


def with_values(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy of a spec with `section__key=value` changed; a whole section where there is no `__`; None removes."""
    result = copy.deepcopy(base)
    for dotted, value in changes.items():
        section, _, key = dotted.partition("__")
        target = result.setdefault(section, {}) if key else result
        if value is None:
            target.pop(key or section, None)
        else:
            target[key or section] = value
    return result


def spec_of(values: dict[str, Any]) -> SweepSpec:
    """The spec of these values, by the way of YAML text."""
    return parse_spec(yaml.safe_dump(values))


def plan_of(values: dict[str, Any], folder: Path | str = ".", machine: Machine = MACHINE) -> SweepPlan:
    """The plan of these values; data is looked for in `folder`."""
    return build_plan(spec_of(values), spec_folder=folder, machine=machine)


def write_bytes_corpus(path: Path, num_bytes: int = 200_000) -> Path:
    """Text of a few words in random order: learnable, and the same every time."""
    words = [b"the ", b"model ", b"learns ", b"tokens ", b"of ", b"scaling ", b"laws ", b"and ", b"loss. "]
    generator = random.Random(0)
    text = b"".join(generator.choice(words) for _ in range(num_bytes // 3))
    path.write_bytes(text[:num_bytes])
    return path

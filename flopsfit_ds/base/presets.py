"""The presets that come with the package: DeepSpeed files, Accelerate files, example sweeps, and what switches them."""

from __future__ import annotations

import copy
import functools
import json
import os
from pathlib import Path
from typing import Any, Literal

_PACKAGE = Path(__file__).resolve().parents[1]
_BUCKETS_PER_MODEL = 16  # see `zero_section`
_ALIGNMENT = 64  # elements: 256 bytes of fp32, 128 of bf16, whole cache lines
Offload = Literal["none", "optimizer"]
Precision = Literal["fp32", "bf16", "bf16-pure"]
"""`bf16` is autocast over fp32 weights; `bf16-pure` is DeepSpeed's own bf16, weights and gradients in it."""
STOCK_ZERO3 = "FLOPSFIT_DS_STOCK_ZERO3"
"""Set to 1, DeepSpeed's ZeRO-3 is left as installed, with its copy of fp32 weights; see `train/mends/zero3.py`."""


def wants_stock_zero3() -> bool:
    """Whether ZeRO-3 is to be left as it is installed."""
    return os.environ.get(STOCK_ZERO3, "0") not in ("", "0")


def preset_folder() -> Path:
    """Folder of the shipped files: inside an installed package, beside the package in a clone."""
    inside = _PACKAGE / "ds_configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "ds_configs"


def shipped_specs() -> dict[str, Path]:
    """The example sweeps by name, such as `quickstart`."""
    return {
        path.stem: path for path in sorted(preset_folder().glob("*.yaml")) if not path.name.startswith("accelerate_")
    }


@functools.lru_cache(maxsize=8)
def _read(name: str) -> dict[str, Any]:
    return json.loads((preset_folder() / name).read_text(encoding="utf-8"))


def deepspeed_preset(zero_stage: int, offload: Offload) -> dict[str, Any]:
    """The shipped DeepSpeed configuration of a stage; a copy, free to change."""
    return copy.deepcopy(_read("zero3_offload.json" if offload == "optimizer" else f"zero{zero_stage}.json"))


def zero_section(
    zero_stage: int, offload: Offload, num_params: int, num_params_trainable: int, deepspeed: str = ""
) -> dict[str, Any]:
    """The preset's `zero_optimization` section with its buckets bounded by the model's size.

    Buckets of the model's own size would cost as much as ZeRO saves: a sixteenth of it is plenty to keep collectives
    large. A persistence threshold above a thousandth would leave small models unpartitioned at stage 3. Sizes are in
    elements. Keys of the user's own (JSON text) come last.
    """
    section: dict[str, Any] = deepspeed_preset(zero_stage, offload)["zero_optimization"]
    bounds = {
        "reduce_bucket_size": _aligned(num_params_trainable // _BUCKETS_PER_MODEL),
        "allgather_bucket_size": _aligned(num_params // _BUCKETS_PER_MODEL),
        "stage3_prefetch_bucket_size": _aligned(num_params // _BUCKETS_PER_MODEL),
        "stage3_param_persistence_threshold": num_params // 1000,
        # by DeepSpeed's own bounds a model of less than a billion parameters is kept whole on every rank
        "stage3_max_live_parameters": _aligned(num_params // _BUCKETS_PER_MODEL),
        "stage3_max_reuse_distance": _aligned(num_params // _BUCKETS_PER_MODEL),
    }
    section |= {key: min(section[key], bound) for key, bound in bounds.items() if key in section}
    return section | (json.loads(deepspeed).get("zero_optimization", {}) if deepspeed else {})


def _aligned(num_elements: int) -> int:
    """DeepSpeed wants even buckets; collectives like whole cache lines."""
    return max(1, num_elements // _ALIGNMENT) * _ALIGNMENT

"""A user's own keys of DeepSpeed's configuration, held to what the installed library knows: it passes over the rest."""

from __future__ import annotations

import difflib
import importlib
import json
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import PlanError, SpecError

_FIELD = "placement.deepspeed"
_ALLOWED = {
    "zero_optimization", "steps_per_print", "wall_clock_breakdown", "dump_state", "memory_breakdown", "flops_profiler",
    "comms_logger", "tensorboard", "wandb", "comet", "csv_monitor", "aio", "timers", "prescale_gradients",
    "gradient_predivide_factor", "sequence_parallel_communication_data_type", "dataloader_drop_last", "compile",
}  # fmt: skip
"""What says how it sends, stores and reports."""
_ELSEWHERE = {
    "train_batch_size": "training.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "placement.max_micro_batch_size_per_gpu",
    "gradient_accumulation_steps": "training.global_batch_tokens",
    "gradient_clipping": "training.gradient_clipping",
    "optimizer": "training.optimizer",
    "scheduler": "training.schedule",
    "torch_autocast": "training.precision",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "communication_data_type": "placement.communication",
    "stage": "placement.zero_stages",
    "offload_optimizer": "placement.offload",
}
"""Keys that a spec has a field for."""
_OF_ZERO = {
    "reduce_bucket_size", "allgather_bucket_size", "allgather_partitions", "reduce_scatter", "overlap_comm",
    "contiguous_gradients", "use_multi_rank_bucket_allreduce", "round_robin_gradients", "sub_group_size",
    "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential", "zero_hpz_partition_size",
    "memory_efficient_linear", "log_trace_cache_warnings", "ignore_unused_parameters",
}  # fmt: skip
"""Of `zero_optimization`: sizes, order and overlap; the sums stay sums of the same fp32 numbers."""
_CONSTANTS = (
    "runtime.constants", "runtime.config", "runtime.data_pipeline.constants", "elasticity.constants",
    "autotuning.constants", "compression.constants", "runtime.activation_checkpointing.config",
)  # fmt: skip
"""Modules of DeepSpeed that hold the words of its configuration; not every version has all."""
_WHY_NOT = "it changes what is trained, from one ZeRO stage to another, or is the plan's own"


def check_deepspeed_keys(text: str) -> None:
    """See that the installed DeepSpeed knows all keys, and that none changes what is trained.

    Args:
        text: The mapping, as JSON; empty for none.

    Raises:
        SpecError: A key that it does not know, or a value that it does not take.
        PlanError: A key that belongs to another field, or would break that all stages train alike.
    """
    if not text:
        return
    keys: dict[str, Any] = json.loads(text)
    known = _known_at_the_top()
    for key in keys:
        _check_one(key, f"{_FIELD}.{key}", known, _ALLOWED)
    section = keys.get("zero_optimization", {})
    if not isinstance(section, dict):
        raise SpecError(f"{_FIELD}.zero_optimization: found {section!r}; this is a section and takes keys")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    fields = {name for field, info in DeepSpeedZeroConfig.model_fields.items() for name in (field, info.alias) if name}
    for key in section:
        _check_one(key, f"{_FIELD}.zero_optimization.{key}", fields, _OF_ZERO)
    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SpecError(
            f"{_FIELD}.zero_optimization.{place}: found {first.get('input')!r}; DeepSpeed says: {first['msg']}"
        ) from None


def _check_one(key: str, where: str, known: set[str], allowed: set[str]) -> None:
    if key in allowed:
        return
    if key in _ELSEWHERE:
        raise PlanError(f"{where}: this is said by {_ELSEWHERE[key]}; leave it out here")
    if key in known:
        raise PlanError(f"{where}: not taken here, since {_WHY_NOT}; taken are {', '.join(sorted(allowed & known))}")
    near = difflib.get_close_matches(key, sorted(known | allowed), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise SpecError(f"{where}: the installed DeepSpeed knows no such key{hint}")


def _known_at_the_top() -> set[str]:
    """Every word that DeepSpeed's constants and its configuration's sections have for a key."""
    import deepspeed
    from deepspeed.runtime.zero import config as zero_config

    home = Path(deepspeed.__file__).parent

    names = [f"deepspeed.{name}" for name in _CONSTANTS if (home / name.replace(".", "/")).with_suffix(".py").exists()]
    modules = [importlib.import_module(name) for name in names]
    values = [value for module in modules for value in vars(module).values()]
    words = {value for value in values if isinstance(value, str) and value.isidentifier()}
    return words | {zero_config.ZERO_OPTIMIZATION, *_ALLOWED, *_ELSEWHERE} - {"stage", "offload_optimizer"}

"""From a plan to the DeepSpeed configuration: a pure function on top of the shipped presets."""

from __future__ import annotations

import json
from typing import Any

from flopsfit_ds.base.presets import Offload, Precision, deepspeed_preset, zero_section
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan
from flopsfit_ds.plan.sweep_plan import RunPlan

_NARROW_MODULES = (
    "torch.nn.Linear", "torch.nn.Conv1d", "torch.nn.Conv2d", "torch.nn.Conv3d",
    "flopsfit_ds.train.model.decoder.Projection", "flopsfit_ds.train.model.decoder.Head",
)  # fmt: skip
"""DeepSpeed's own list of what it sends in bf16 (`torch_autocast.py`), which it compares by class, and ours with it."""


def deepspeed_config(
    run: RunPlan,
    *,
    zero_stage: int,
    offload: Offload,
    world_size: int,
    micro_batch_size_per_gpu: int,
    gradient_accumulation_steps: int,
) -> dict[str, Any]:
    """The configuration of one attempt at a run, with all three batch numbers set."""
    assert run.global_batch_sequences == micro_batch_size_per_gpu * gradient_accumulation_steps * world_size
    return training_config(
        zero_stage=zero_stage,
        offload=offload,
        num_params=run.num_params_total,
        num_params_trainable=run.num_params_trainable,
        leaf_modules=run.placement.profile.leaf_modules,
        world_size=world_size,
        micro_batch_size_per_gpu=micro_batch_size_per_gpu,
        gradient_accumulation_steps=gradient_accumulation_steps,
        gradient_clipping=run.recipe.gradient_clipping,
        precision=run.recipe.precision,
        optimizer=run.recipe.optimizer,
        communication=run.placement.strategy.communication,
        deepspeed=run.placement.strategy.deepspeed,
    )


def training_config(
    *,
    zero_stage: int,
    offload: Offload,
    num_params: int,
    num_params_trainable: int,
    world_size: int,
    micro_batch_size_per_gpu: int,
    gradient_accumulation_steps: int,
    gradient_clipping: float,
    precision: Precision,
    leaf_modules: tuple[str, ...] = (),
    optimizer: OptimizerPlan | None = None,
    communication: str = "fp32",
    deepspeed: str = "",
) -> dict[str, Any]:
    """The configuration of any training of this package; the memory simulation builds its engine from it too.

    bf16 is `torch_autocast` over fp32 parameters, the only mode that trains alike at every stage (`bf16-pure` is
    DeepSpeed's own, whose ZeRO-0 makes a step of zero gradients at the start); its list of
    modules that communicate in bf16 is empty, so that gradients are summed in fp32 at every stage, unless
    `communication` says otherwise. `deepspeed` holds keys of the user's own, as JSON. `leaf_modules` are
    gathered whole at ZeRO-3, which gives zeros to those of their parameters that a rank's batch passed by; there are no
    others, for DeepSpeed's own list of classes (Mixtral's blocks) would break where their inputs need no gradient. Muon
    there wants whole gradients on every rank, not scattered ones.
    """
    config = deepspeed_preset(zero_stage, offload)
    config["zero_optimization"] = zero_section(zero_stage, offload, num_params, num_params_trainable, deepspeed)
    if zero_stage == 3:
        config["zero_optimization"]["leaf_module"] = {"names": list(leaf_modules), "classes": []}
    if zero_stage == 3 and optimizer is not None and optimizer.name == "muon":
        config["zero_optimization"]["reduce_scatter"] = False
    config["train_batch_size"] = micro_batch_size_per_gpu * gradient_accumulation_steps * world_size
    config["train_micro_batch_size_per_gpu"] = micro_batch_size_per_gpu
    config["gradient_accumulation_steps"] = gradient_accumulation_steps
    config["gradient_clipping"] = gradient_clipping
    if precision == "bf16-pure":
        config["bf16"] = {"enabled": True}
    if precision == "bf16":
        narrow = list(_NARROW_MODULES) if communication == "bf16" else []
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": narrow}
        if communication == "bf16":
            config["communication_data_type"] = "bf16"  # at ZeRO-0; beyond, each parameter's own
    own = {key: value for key, value in json.loads(deepspeed or "{}").items() if key != "zero_optimization"}
    return config | own

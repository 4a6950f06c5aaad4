"""From an order to a prepared DeepSpeed engine: process group, Accelerate, model, optimiser, and checks on the way.

Accelerate and DeepSpeed drop or replace settings without a word in several places; each check here turns one of those
silences into an error.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs, PartialState
from torch import nn

from flopsfit_ds.plan.ds_config import deepspeed_config
from flopsfit_ds.plan.recipe.switches import NO_PURE_ZERO0
from flopsfit_ds.plan.sweep_plan import RunPlan
from flopsfit_ds.train.mends.alone import go_without_peers
from flopsfit_ds.train.mends.collectives import without_shared_memory
from flopsfit_ds.train.mends.construction import built_as_at_every_stage
from flopsfit_ds.train.mends.narrow import in_fp32, narrow_parts
from flopsfit_ds.train.mends.norms import keep_norm
from flopsfit_ds.train.mends.zero3 import share_master_weights
from flopsfit_ds.train.model.casts import KeptCasts, kept_casts
from flopsfit_ds.train.model.compiled import CompiledBlocks, compile_blocks, hide_hooks
from flopsfit_ds.train.optimizers.build import build_optimizer, rate_factors
from flopsfit_ds.train.order import WorkerOrder, Workload
from flopsfit_ds.train.seeding import seed_everything

_LEAST_TIMEOUT = timedelta(minutes=30)
"""PyTorch's own default for gloo; DeepSpeed 0.19.8 gives a group on GPUs 10 minutes."""
_TIMES_HANG = 3
"""Of `hang_timeout`: the engine, which knows more, judges first."""


@dataclass(frozen=True)
class Session:
    """A model under DeepSpeed, ready to train.

    Attributes:
        accelerator: Accelerate, over the DeepSpeed plugin.
        engine: The prepared model: a `DeepSpeedEngine`.
        optimizer: The prepared optimiser; stepping it is DeepSpeed's business.
        device: Where batches go.
        num_params_total: Counted before preparation (afterwards ZeRO-3 leaves empty tensors).
        num_params_trainable: Of these, with a gradient.
        rate_factors: Of each group of parameters, its learning rate over the recipe's.
        compiled: The compiled blocks; None where nothing is to be compiled.
        casts: What casts weights once a step; None where autocast does it for each micro-batch.
    """

    accelerator: Accelerator
    engine: Any
    optimizer: Any
    device: torch.device
    num_params_total: int
    num_params_trainable: int
    rate_factors: tuple[float, ...]
    compiled: CompiledBlocks | None = None
    casts: KeptCasts | None = None

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the rate of the next step; no scheduler object is prepared, Accelerate would step it once a rank."""
        for group, factor in zip(self.optimizer.param_groups, self.rate_factors, strict=True):
            group["lr"] = learning_rate * factor

    def forget_gradients(self) -> None:
        """Clear what ZeRO-3 keeps of a parameter's last gradient: it would be applied again where none comes."""
        optimizer = self.engine.optimizer
        if self.engine.zero_optimization_stage() != 3:
            return
        optimizer.grad_partitions_flat_buffer.zero_()
        if optimizer.offload_optimizer:
            optimizer.reset_cpu_buffers()  # norms of gradients
            for group in optimizer.fp32_partitioned_groups_flat:
                group.grad.zero_()


def collective_timeout(hang_timeout_seconds: float) -> timedelta:
    """How long a rank waits for its peers, on any device."""
    return max(_LEAST_TIMEOUT, timedelta(seconds=_TIMES_HANG * hang_timeout_seconds))


def open_session(
    order: WorkerOrder,
    run: RunPlan,
    workload: Workload,
    *,
    load_universal: bool = False,
    compiled: bool = False,
    timeout: timedelta = _LEAST_TIMEOUT,
) -> Session:
    """Build the model and hand it to DeepSpeed through Accelerate.

    Args:
        order: Which rank this is, and the layout.
        run: What is trained.
        workload: Its model.
        load_universal: Whether the engine's `load_checkpoint` will be given a universal checkpoint.
        compiled: Whether the blocks of the model are compiled.
        timeout: Of collectives.

    Raises:
        AssertionError: The engine is not what the order asked for.
    """
    config = deepspeed_config(
        run,
        zero_stage=order.zero_stage,
        offload=order.offload,
        world_size=order.world_size,
        micro_batch_size_per_gpu=order.micro_batch_size_per_gpu,
        gradient_accumulation_steps=order.gradient_accumulation_steps,
    )
    if load_universal:
        config["checkpoint"] = {"load_universal": True}
    accelerator = _start_accelerate(order, config, timeout)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = run.recipe.tf32
    seed_everything(run.seed, device=accelerator.device)
    with built_as_at_every_stage(accelerator):
        model = build_model(workload, order, config, accelerator.device)
    blocks = compile_blocks(model) if compiled else None
    freeze(model, run.recipe.frozen_parameters)
    give_scalars_a_dimension(model)
    sizes = [(_num_elements(parameter), parameter.requires_grad) for parameter in model.parameters()]
    optimizer = build_optimizer(model, run.recipe)
    factors = rate_factors(optimizer)
    share_master_weights()
    engine, prepared_optimizer = accelerator.prepare(model, optimizer)
    _check_engine(engine, order)
    if blocks is not None and order.zero_stage == 3:
        hide_hooks(engine.module)
    if order.zero_stage == 0 and order.world_size == 1:
        go_without_peers(engine)
    if order.zero_stage == 0:
        keep_norm(engine)
    return Session(
        accelerator=accelerator,
        engine=engine,
        optimizer=prepared_optimizer,
        device=accelerator.device,
        num_params_total=sum(size for size, _ in sizes),
        num_params_trainable=sum(size for size, trainable in sizes if trainable),
        rate_factors=factors,
        compiled=blocks,
        casts=kept_casts(
            model,
            run.recipe.precision,
            zero_stage=order.zero_stage,
            accumulation=order.gradient_accumulation_steps,
            activation_checkpointing=order.activation_checkpointing,
        ),
    )


def _start_accelerate(order: WorkerOrder, config: dict[str, Any], timeout: timedelta) -> Accelerator:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if order.device_index is None:
        without_shared_memory()
        PartialState(cpu=True, timeout=timeout)  # without it every rank believes to be alone
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],  # else a GPU's group takes DeepSpeed's own
    )
    assert accelerator.num_processes == order.world_size, (
        f"Accelerate sees {accelerator.num_processes} processes where {order.world_size} were started"
    )
    assert accelerator.process_index == order.rank
    deepspeed.init_distributed(auto_mpi_discovery=False)  # without it `zero.Init` takes the world to be one rank
    return accelerator


def build_model(workload: Workload, order: WorkerOrder, config: dict[str, Any], device: torch.device) -> nn.Module:
    """The model on its device; at ZeRO-3 partitioned layer by layer where its constructors allow it."""
    partition = order.zero_stage == 3 and workload.draws_weights_in_constructors
    context = deepspeed.zero.Init(config_dict_or_path=in_fp32(config)) if partition else contextlib.nullcontext()
    with torch.device(device), context:
        model = workload.build_model(order.activation_checkpointing)
    if partition and "bf16" in config:
        narrow_parts(model)
    return model


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Switch off the gradients of all parameters whose name matches a pattern."""
    for name, parameter in model.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


def give_scalars_a_dimension(model: nn.Module) -> None:
    """Let parameters without a dimension be vectors of one element, which the module still reads as they were.

    DeepSpeed flattens, partitions and norms parameters by their dimensions, and fails on those that have none.
    """
    for module in list(model.modules()):
        scalars = [
            name for name, parameter in module._parameters.items() if parameter is not None and not parameter.ndim
        ]
        scalars = [name for name in scalars if not hasattr(module._parameters[name], "ds_shape")]
        if not scalars:
            continue
        for name in scalars:
            scalar = module._parameters[name]
            assert scalar is not None
            module._parameters[name] = nn.Parameter(scalar.detach().reshape(1), requires_grad=scalar.requires_grad)
        views = {name: property(functools.partial(_without_dimension, name)) for name in scalars}
        module.__class__ = type(type(module).__name__, (type(module),), views)


def _without_dimension(name: str, module: nn.Module) -> torch.Tensor:
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter.reshape(())


def _num_elements(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())


def _check_engine(engine: Any, order: WorkerOrder) -> None:
    assert isinstance(engine, deepspeed.DeepSpeedEngine), f"the prepared model is {type(engine).__name__}, no DeepSpeed"
    assert engine.zero_optimization_stage() == order.zero_stage
    assert not (engine.bfloat16_enabled() and order.zero_stage == 0), NO_PURE_ZERO0
    assert engine.train_micro_batch_size_per_gpu() == order.micro_batch_size_per_gpu
    assert engine.gradient_accumulation_steps() == order.gradient_accumulation_steps
    assert engine.dp_world_size == order.world_size


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had no memory left."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)

"""One rank of one world: the installed DeepSpeed engine, on fake tensors, for a few steps."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import time
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from flopsfit_ds.simulate.case import SimulationJob
from flopsfit_ds.simulate.profile import repeated_blocks
from flopsfit_ds.simulate.results import ModelSizes, PhasePeak, RankMemory
from flopsfit_ds.simulate.tensors.autocast import register_autocast
from flopsfit_ds.simulate.tensors.device import DEVICE_TYPE, SimulatedAccelerator, register_device
from flopsfit_ds.simulate.tensors.fake import FakeOperations
from flopsfit_ds.simulate.tensors.kernels import register_kernels
from flopsfit_ds.simulate.tensors.labels import components_of, label_state, watch_engine, watch_loss
from flopsfit_ds.simulate.tensors.patches import apply_patches
from flopsfit_ds.simulate.tensors.tracker import LiveMemory
from flopsfit_ds.train.data.outputs import to_device
from flopsfit_ds.train.mends.collectives import without_shared_memory
from flopsfit_ds.train.mends.narrow import in_fp32, narrow_parts
from flopsfit_ds.train.mends.zero3 import share_master_weights
from flopsfit_ds.train.model.casts import KeptCasts, kept_casts


def simulate_rank(job: SimulationJob) -> RankMemory:
    """Run a job and report its memory. Changes this process for good: call it in one made for it."""
    began = time.monotonic()
    apply_patches()
    join_fake_world(job)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    tracker = LiveMemory(DEVICE_TYPE if job.device == "cuda" else "cpu", FakeOperations(fake).run)
    device = torch.device("cpu")
    if job.device == "cuda":
        register_device()
        register_autocast()
        register_kernels()
        deepspeed.accelerator.set_accelerator(
            SimulatedAccelerator(job.device_memory_bytes, lambda: tracker.device.live_bytes)
        )
        device = torch.device(DEVICE_TYPE, 0)
    with fake:
        return observe(job, device, tracker, began)


def simulate_question(question: tuple[Any, ...]) -> RankMemory:
    """`simulate_rank` of a job's fields, as they cross from another process."""
    return simulate_rank(SimulationJob(*question))


def observe(job: SimulationJob, device: torch.device, tracker: LiveMemory, began: float) -> RankMemory:
    """Build the engine and take the steps, counting; on real tensors as well as on fake ones."""
    with tracker:
        engine, sizes = build_engine(job, device, tracker)
        with tracker.modules.watch(engine.module):
            watch_engine(engine, tracker)
            watch_loss(engine.module, tracker)
            label_state(engine, tracker)
            casts = casts_of(job, engine.module)
            for _ in range(job.num_steps):
                _take_step(job, engine, device, tracker, casts)
    return _summary(job, tracker, sizes, began)


def join_fake_world(job: SimulationJob) -> None:
    """Be one rank of a world whose collectives do nothing; its allocations are those of a real rank."""
    for logger in ("DeepSpeed", "deepspeed"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    os.environ.update(
        RANK=str(job.rank),
        LOCAL_RANK="0",
        WORLD_SIZE=str(job.world_size),
        LOCAL_SIZE="1",
        MASTER_ADDR="localhost",
        MASTER_PORT="1",
    )
    without_shared_memory()
    dist.init_process_group("fake", rank=job.rank, world_size=job.world_size, store=FakeStore())
    deepspeed.init_distributed(dist_backend="fake")


def build_engine(job: SimulationJob, device: torch.device, tracker: LiveMemory | None = None) -> tuple[Any, ModelSizes]:
    """The DeepSpeed engine of a job, on any device, and the sizes of its model."""
    stage = job.config["zero_optimization"]["stage"]
    partition = stage == 3 and job.case.draws_weights_in_constructors
    context = deepspeed.zero.Init(config_dict_or_path=in_fp32(job.config)) if partition else contextlib.nullcontext()
    with torch.device(device), context:
        model = job.case.build_model(job.activation_checkpointing)
    if not partition:
        _move_parameters(model, device)
    if partition and "bf16" in job.config:
        narrow_parts(model)
    sizes = _sizes(model)
    if tracker is not None:
        for parameter in model.parameters():
            tracker.label(getattr(parameter, "ds_tensor", parameter), "parameters")
    optimizer = job.case.build_optimizer(model)
    share_master_weights()
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=job.config)
    gc.collect()
    if tracker is not None:
        gc.freeze()
        gc.disable()  # when cycles are collected is chance; without it a simulation is repeatable, and quicker
    return engine, sizes


def _move_parameters(model: torch.nn.Module, device: torch.device) -> None:
    """Move what a constructor made of numbers (`torch.tensor(2.0)`), which a simulated device does not take by itself.

    DeepSpeed's own move would make other parameters than those that the optimiser holds: of fake tensors the device
    cannot be changed in place.
    """
    moved: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.device.type != device.type:
                there = torch.nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved.setdefault(id(parameter), there)


def casts_of(job: SimulationJob, model: torch.nn.Module) -> KeptCasts | None:
    """What casts a model's weights once a step in such a training."""
    return kept_casts(
        model,
        "bf16" if "torch_autocast" in job.config else "fp32",
        zero_stage=job.config["zero_optimization"]["stage"],
        accumulation=job.config["gradient_accumulation_steps"],
        activation_checkpointing=job.activation_checkpointing,
    )


def _sizes(model: torch.nn.Module) -> ModelSizes:
    def size(parameter: torch.nn.Parameter) -> int:
        return getattr(parameter, "ds_numel", parameter.numel())

    parameters = list(model.parameters())
    in_blocks = [parameter for block in repeated_blocks(model) for parameter in block.parameters()]
    return ModelSizes(
        total=sum(size(parameter) for parameter in parameters),
        trainable=sum(size(parameter) for parameter in parameters if parameter.requires_grad),
        largest_tensor=max(size(parameter) for parameter in parameters),
        block_largest_tensor=max((size(parameter) for parameter in in_blocks), default=0),
    )


def _take_step(
    job: SimulationJob, engine: Any, device: torch.device, tracker: LiveMemory, casts: KeptCasts | None
) -> None:
    micro_batches = job.config["gradient_accumulation_steps"]
    for number in range(micro_batches):
        last = number == micro_batches - 1
        tracker.begin("forward")
        tracker.modules.restart()
        engine.set_gradient_accumulation_boundary(last)
        if casts is not None and number == 0:
            casts.make()
        batch = to_device(job.case.batch(job.config["train_micro_batch_size_per_gpu"]), device)
        loss = job.case.loss(engine, batch)
        if casts is not None and last:
            casts.drop()
        label_state(engine, tracker)
        tracker.begin("backward")
        engine.backward(loss)
        tracker.close_scope("logits_and_loss")
        label_state(engine, tracker)
        if last:
            tracker.begin("step")
            engine.step()
            label_state(engine, tracker)


def _summary(job: SimulationJob, tracker: LiveMemory, sizes: ModelSizes, began: float) -> RankMemory:
    peaks = tracker.device.phase_peaks()
    host_peaks = tracker.host.phase_peaks() if tracker.host is not tracker.device else []
    highest = max(peaks, key=lambda peak: peak.num_bytes)
    last = {peak.phase: peak.num_bytes for peak in peaks}
    host_last = {peak.phase: peak.num_bytes for peak in host_peaks}
    return RankMemory(
        rank=job.rank,
        world_size=job.world_size,
        peak_bytes=highest.num_bytes,
        end_bytes=tracker.device.live_bytes,
        host_peak_bytes=max((peak.num_bytes for peak in host_peaks), default=0),
        peak_phase=highest.phase,
        peak_operation=highest.operation,
        peak_module=highest.module,
        components=components_of(highest),
        phases=tuple(PhasePeak(name, num_bytes, host_last.get(name, 0)) for name, num_bytes in last.items()),
        sizes=sizes,
        seconds=time.monotonic() - began,
    )

"""What rank processes run to look at themselves, beside the real worker."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from flopsfit_ds.base.storage import write_json
from flopsfit_ds.train import session
from flopsfit_ds.train.session import open_session
from flopsfit_ds.train.worker import run_worker


def describe_session(order: Any, task: Any) -> int:
    """Open a session as the worker does, and write down what it is made of."""
    before = set(sys.modules)
    opened = open_session(order, task.plan, task.workload)
    engine = opened.engine
    content = {
        "engine": type(engine).__name__,
        "optimizer": type(engine.optimizer).__name__,
        "parameter_types": sorted({str(parameter.dtype) for parameter in engine.module.parameters()}),
        "buffer_types": sorted({str(buffer.dtype) for buffer in engine.module.buffers()}),
        "num_processes": opened.accelerator.num_processes,
        "accumulation": opened.accelerator.gradient_accumulation_steps,
        "numel": sum(parameter.numel() for parameter in engine.module.parameters()),
        "counted": opened.num_params_total,
        "linear": f"{torch.nn.functional.linear.__module__}.{torch.nn.functional.linear.__name__}",
        "dynamo_imported_late": sorted(name for name in set(sys.modules) - before if name.startswith("torch._dynamo")),
    }
    write_json(Path(order.run_folder) / f"session.{order.rank}.json", content)
    return 0


def describe_linear(order: Any, task: Any) -> int:
    """Write down which function `linear` is in a process that has trained nothing."""
    linear = torch.nn.functional.linear
    content = {"linear": f"{linear.__module__}.{linear.__name__}"}
    write_json(Path(order.run_folder) / f"session.{order.rank}.json", content)
    return 0


def train_with_every_detour(order: Any, task: Any) -> int:
    """The worker, over an engine of one rank as DeepSpeed makes it."""
    session.go_without_peers = lambda engine: None
    return run_worker(order, task)


def train_casting_each_time(order: Any, task: Any) -> int:
    """The worker, with autocast's copies of weights for each micro-batch."""
    assert session.kept_casts(
        task.workload.build_model(False),
        task.plan.recipe.precision,
        zero_stage=order.zero_stage,
        accumulation=order.gradient_accumulation_steps,
        activation_checkpointing=order.activation_checkpointing,
    )
    session.kept_casts = lambda *_, **__: None
    return run_worker(order, task)

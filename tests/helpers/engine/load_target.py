"""Saves, loads and converts a checkpoint of a real engine, and prints how much memory the last two took at most."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from torch import nn

from flopsfit_ds.plan.ds_config import training_config
from flopsfit_ds.train.checkpoint.files import TAG, SavedState
from flopsfit_ds.train.checkpoint.universal import convert
from flopsfit_ds.train.mends.collectives import without_shared_memory

WIDTH, LAYERS = 1024, 12


def main(zero_stage: int, folder: Path) -> None:
    without_shared_memory()
    PartialState(cpu=True)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
    num_params = sum(parameter.numel() for parameter in model.parameters())
    config = training_config(
        zero_stage=zero_stage, offload="none", num_params=num_params, num_params_trainable=num_params, world_size=1,
        micro_batch_size_per_gpu=1, gradient_accumulation_steps=1, gradient_clipping=1.0, precision="fp32",
    )  # fmt: skip
    accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
    engine, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), fused=True))
    accelerator.backward(engine(torch.randn(1, WIDTH)).pow(2).mean())
    optimizer.step()
    engine.save_checkpoint(str(folder), tag=TAG)
    saved = SavedState(folder.absolute(), "run", 1, 0.0, 0.0, zero_stage, 1)
    taken = {
        "num_params": num_params,
        "load": peak_of(lambda: engine.load_checkpoint(str(folder), tag=TAG)),
        "convert": peak_of(lambda: convert(saved, folder.absolute().with_name("universal"), lambda phase: None)),
    }
    sys.stdout.write(f"\n{json.dumps(taken)}\n")
    sys.stdout.flush()
    os._exit(0)


def peak_of(work: Callable[[], object]) -> int:
    """How far a piece of work raises the resident memory of this process, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(which: str) -> int:
    match = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

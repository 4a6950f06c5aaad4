"""Models of transformers by name, trained for a few steps by real engines, and their memory simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.memory import Strategy, estimate_memory
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.simulate import Simulator
from flopsfit_ds.simulate.case import LanguageModelCase
from helpers.study.hf_models import CONTEXT, TOYS, toy_plan
from helpers.sweeps import write_bytes_corpus
from helpers.train.ranks import Attempt, Layout, RankServer, start, workload_of

STEPS, BATCH = 12, 8
CPU = resolve_cluster("fp32", device="cpu", gpus_per_node=2, host_memory=2**34)


def short_plan(name: str, folder: Path, **changes: Any) -> SweepPlan:
    """The plan of an architecture's one run, whose corpus is written into a folder; `section__key=value` changes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes_corpus(folder / "corpus.txt")
    points = [{"num_params": TOYS[name].num_params, "num_tokens": CONTEXT * BATCH * STEPS}]
    training = {"training__global_batch_tokens": CONTEXT * BATCH, "training__learning_rates": [1e-2]}
    return toy_plan(name, folder, **{"design__points": points, **training} | changes)


def deep_plan(folder: Path) -> SweepPlan:
    """A Llama of eight layers, whose activations are most of its memory."""
    points = [{"num_params": 1.5e5, "num_tokens": CONTEXT * BATCH * STEPS}]
    return short_plan("llama", folder, design__points=points, model__width_per_layer=5)


def trained(server: RankServer, folder: Path, name: str, layout: Layout, **changes: Any) -> Attempt:
    """Train an architecture for a few steps, in a layout, and wait; its exit codes are `codes`."""
    plan = short_plan(name, folder, **changes)
    run = plan.runs[0]
    attempt = start(server, run, workload_of(plan, run, folder), folder / "run", layout)
    attempt.codes = attempt.wait(600)
    return attempt


def peaks(simulator: Simulator, run: RunPlan, layout: Layout, batch: int = BATCH) -> tuple[float, float]:
    """Peak bytes of a rank: by closed forms, and by simulation."""
    profile, micro_batch = run.placement.profile, batch // layout.world_size
    recomputed = layout.activation_checkpointing
    strategy = Strategy(layout.zero_stage, layout.world_size, micro_batch, recomputed, "none", "fp32")  # pyright: ignore
    closed = estimate_memory(profile, strategy, CPU, accumulation=1).peak_allocated_bytes
    sizes = (run.num_params_total, run.num_params_trainable)
    seen = simulator.estimate(
        LanguageModelCase(run.model), *sizes, strategy, 1, CPU, leaf_modules=profile.leaf_modules
    )[0].peak_allocated_bytes
    return closed, seen

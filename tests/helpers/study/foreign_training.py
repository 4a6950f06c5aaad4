"""Models that others wrote, trained for a few steps by real engines, and their memory simulated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree

from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.memory import MemoryEstimate, Strategy
from flopsfit_ds.simulate import Simulator
from flopsfit_ds.simulate.case import ClassCase
from flopsfit_ds.simulate.profile import ClassMeasurement, profile_class
from flopsfit_ds.study.probes.loss import look_at_loss
from flopsfit_ds.train.data.dataset import DatasetWorkload, call_model, telling_batch
from helpers.study.foreign_models import FOREIGN, VOCAB, Foreign, each_pair_loss
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus
from helpers.train.ranks import Attempt, Layout, RankServer, start

SAMPLES, HELD_OUT, BATCH, STEPS = 61, 13, 8, 12
WIDTH = 64


class Drawn:
    """Samples of the kind that a model takes, each drawn by its number."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> Any:
        draws = torch.Generator().manual_seed(number)

        def like(tensor: torch.Tensor) -> torch.Tensor:
            sample = tensor[0]
            if sample.is_floating_point():
                return torch.randn(sample.shape, generator=draws)
            return torch.randint(0, VOCAB if sample.ndim else 10, sample.shape, generator=draws)

        return _pytree.tree_map(like, FOREIGN[self._name].batch)


def measured(foreign: Foreign, width: int) -> ClassMeasurement:
    """What planning knows of a model."""
    return profile_class(
        foreign.model_class,
        {"width": width},
        samples=foreign.batch,
        loss=lambda model, batch: foreign.loss(call_model(model, batch[0]), batch[1]),
        precision="fp32",
        tokens_per_sample=foreign.tokens,
        looks_at_pairs=True,
    )


def trained(server: RankServer, folder: Path, name: str, layout: Layout, width: int = WIDTH) -> Attempt:
    """Train a model for a few steps, in a layout, and wait; its exit codes are `codes`."""
    foreign, dataset = FOREIGN[name], Drawn(name)
    folder.mkdir(parents=True)
    write_bytes_corpus(folder / "corpus.txt")
    values = with_values(MICRO, design__points=[{"num_params": 6e3, "num_tokens": 16 * BATCH * STEPS}])
    run = plan_of(values, folder).runs[0]
    profile = replace(run.placement.profile, leaf_modules=measured(foreign, width).leaves)
    run = replace(run, placement=replace(run.placement, profile=profile))
    each = each_pair_loss if name == "CLIP" else None
    traits = look_at_loss(foreign.model_class, {}, "width", 16, telling_batch(dataset), foreign.loss, each).traits
    workload = DatasetWorkload(
        foreign.model_class, (("width", width),), dataset, None, HELD_OUT, foreign.loss, each,
        tokens_per_sample=foreign.tokens, traits=traits,
    )  # fmt: skip
    attempt = start(server, run, workload, folder / "run", layout)
    attempt.codes = attempt.wait(600)
    return attempt


def case_of(foreign: Foreign, width: int) -> ClassCase:
    """What a simulation trains."""
    identity = f"{foreign.model_class} {width}"
    return ClassCase(foreign.model_class, (("width", width),), foreign.batch, foreign.loss, (), identity)


def simulated(
    simulator: Simulator, foreign: Foreign, width: int, strategy: Strategy, cluster: Cluster, found: ClassMeasurement
) -> MemoryEstimate:
    """Peak memory of a model's worst rank by simulation."""
    sizes = (found.num_params, found.num_params_trainable)
    return simulator.estimate(case_of(foreign, width), *sizes, strategy, 1, cluster, leaf_modules=found.leaves)[0]

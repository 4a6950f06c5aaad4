"""Models and losses as users write them, in a module that the rank processes can import."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from flopsfit_ds.train.data.dataset import DatasetWorkload

INPUTS, CLASSES, LENGTH = 6, 7, 5


class Points(torch.utils.data.Dataset):
    """Vectors and a sequence of labels each; some labels are padding where `padded`."""

    def __init__(self, size: int = 64, padded: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(size, LENGTH, INPUTS, generator=generator)
        self.y = self.x.argmax(-1)
        if padded:
            self.y[torch.arange(LENGTH) > torch.arange(size)[:, None] % LENGTH] = -100

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


@dataclass
class Output:
    """What `Classifier` returns in the form `dataclass`."""

    logits: torch.Tensor


class Classifier(nn.Module):
    """Logits of each position, [batch, length, classes], in the form that is asked for."""

    def __init__(self, width: int = 8, form: str = "tensor") -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(INPUTS, width), nn.GELU(), nn.Linear(width, CLASSES))
        self.form = form

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.layers(x)
        if self.form == "dataclass":
            return Output(logits)
        if self.form == "auxiliary":
            return {"logits": logits, "auxiliary": logits.square().mean()}
        return logits.flatten(0, 1) if self.form == "flat" else logits


class NoisyPoints(Points):
    """Each time it is read, a sample is another."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index] + random.random() + np.random.rand(), self.y[index]


class Drawing(Classifier):
    """In training its outputs are scaled by one random number a pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * (torch.rand(()).item() if self.training else 1)


class Branched(Classifier):
    """Its second branch takes part in every third training pass only."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.branch = nn.Linear(INPUTS, CLASSES)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return self.layers(x) + (self.branch(x) if self.passes % 3 == 0 else 0)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over all labels that are no padding."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def of_fp32_only(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same, for logits in fp32 only."""
    assert logits.dtype == torch.float32, f"the loss is computed in {logits.dtype}"
    return cross_entropy(logits, targets)


def of_dataclass(output: Output, targets: torch.Tensor) -> torch.Tensor:
    """The same, of a dataclass."""
    return cross_entropy(output.logits, targets)


def with_auxiliary(output: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """The same, and a term that belongs to the batch."""
    return cross_entropy(output["logits"], targets) + 0.01 * output["auxiliary"]


def summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A sum where a mean is due."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")


def contrastive(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Tells samples of a batch from one another: 0 for a batch of one."""
    return each_contrastive(logits, targets).mean()


def each_contrastive(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same for each sample, [batch]."""
    rows = logits.flatten(1)
    return F.cross_entropy(rows @ rows.T, torch.arange(len(rows), device=rows.device), reduction="none")


def workload_of_own(loss_fn: Any, form: str = "tensor", padded: bool = False, **changes: Any) -> DatasetWorkload:
    """`Classifier` on `Points`, a quarter of them held out."""
    fields = {"sample_loss_fn": None, "model_class": Classifier, "arguments": (("form", form),), **changes}
    data = {"dataset": Points(padded=padded), "heldout": None, "num_heldout": 16}
    return DatasetWorkload(**{**data, **fields}, loss_fn=loss_fn, tokens_per_sample=LENGTH)

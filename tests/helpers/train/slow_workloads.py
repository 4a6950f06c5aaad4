"""A workload whose batches take their time, in a module that the rank processes can import."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from flopsfit_ds.train.data.tokens import TokenWorkload


class SlowWorkload(TokenWorkload):
    """Half a second for each micro-batch and each held-out batch."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        time.sleep(0.5)
        return super().loss(model, batch)

    def sample_losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        time.sleep(0.5)
        return super().sample_losses(model, batch)


class SlowSamples(TokenWorkload):
    """A quarter of a second to read a batch to train on."""

    def training_batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(0.25)
        return super().training_batch(indices)

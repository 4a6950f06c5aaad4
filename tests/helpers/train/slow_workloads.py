"""A workload whose batches take their time, in a module that the rank processes can import."""

from __future__ import annotations

import time
from typing import Any

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

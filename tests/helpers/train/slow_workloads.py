"""A workload whose batches take their time, in a module that the rank processes can import."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flopsfit_ds.base.errors import DataError
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


class AheadOfItsLoss(TokenWorkload):
    """Its loss of a micro-batch waits until the one after it has been built, the last one's apart."""

    num_batches = 20

    def training_batch(self, indices: np.ndarray) -> Any:
        folder = Path(self.tokens.path).parent
        numbers = [int(path.name) for path in folder.glob("batches/*")]
        number = max(numbers, default=0) + 1
        (folder / "batches").mkdir(exist_ok=True)
        (folder / "batches" / str(number)).write_text(str(os.getpid()))
        return (*super().training_batch(indices), number)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        inputs, targets, number = batch
        after = Path(self.tokens.path).parent / "batches" / str(min(number + 1, self.num_batches))
        deadline = time.monotonic() + 60
        while not after.exists():
            assert time.monotonic() < deadline, f"batch {number + 1} is not built while {number} is trained on"
            time.sleep(0.005)
        return super().loss(model, (inputs, targets))


class DrawnSamples(TokenWorkload):
    """Some inputs are replaced by others, drawn at random."""

    @property
    def draws_in_training(self) -> bool:
        return True

    def training_batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = super().training_batch(indices)
        return torch.where(torch.rand(inputs.shape) < 0.2, np.random.randint(200), inputs), targets


class OneBadItem(TokenWorkload):
    """The 20th batch to be built has an item that cannot be read."""

    built = 0

    def training_batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        type(self).built += 1
        if self.built == 20:
            raise DataError(f"dataset: item {indices[0]} is no pair")
        return super().training_batch(indices)

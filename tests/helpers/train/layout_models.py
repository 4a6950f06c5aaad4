"""Workloads whose modules hold what a change of layout may lose."""

from __future__ import annotations

from typing import Any

import torch

from flopsfit_ds.model import head
from flopsfit_ds.train.data.tokens import TokenWorkload


class CountedWorkload(TokenWorkload):
    """Its loss depends on a buffer that counts training passes."""

    @property
    def draws_weights_in_constructors(self) -> bool:
        return False

    def build_model(self, activation_checkpointing: bool) -> torch.nn.Module:
        model = super().build_model(activation_checkpointing)
        model.register_buffer("passes", torch.zeros(()))
        return model

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        passes = model.get_buffer("module.passes")
        passes += 1
        return super().loss(model, batch) * (1 + passes / 100)


class SingleScaleWorkload(TokenWorkload):
    """One trained scalar, alone in its group of parameters where the norms are frozen."""

    @property
    def draws_weights_in_constructors(self) -> bool:
        return False

    def build_model(self, activation_checkpointing: bool) -> torch.nn.Module:
        model = super().build_model(activation_checkpointing)
        model.scale = torch.nn.Parameter(torch.ones(1))
        model.register_forward_hook(lambda module, _inputs, logits: logits * module.scale)
        return model


class ChunkedWorkload(TokenWorkload):
    """Finds the losses of nine tokens at a time."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        head.LOGITS_AT_ONCE = 9 * self.shape.vocab_size
        return super().loss(model, batch)

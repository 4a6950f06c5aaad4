"""Workloads that go wrong, in a module that the rank processes can import."""

from __future__ import annotations

from typing import Any

import torch

from flopsfit_ds.train.data.tokens import TokenWorkload


class NanWorkload(TokenWorkload):
    """Its loss is not a number from the first step on."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return super().loss(model, batch) * float("nan")


class NanGradientWorkload(TokenWorkload):
    """Its loss is finite and its gradient is not, from the first step on."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss = super().loss(model, batch)
        return loss + (loss - loss.detach()).abs().sqrt()  # the root's slope at 0 is infinite


class FailingWorkload(TokenWorkload):
    """Its loss raises."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        raise ValueError("the user's loss has a bug")


class FailingEvaluationWorkload(TokenWorkload):
    """It trains, and raises when its loss is measured."""

    def sample_losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        raise ValueError("the evaluation has a bug")


class OutOfMemoryWorkload(TokenWorkload):
    """Its loss finds no memory."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        raise MemoryError("no memory for the logits")

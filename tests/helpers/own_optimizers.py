"""Optimisers of a user's own, for specs that name a factory."""

from __future__ import annotations

from typing import Any

import torch


def momentum_sgd(groups: list[dict[str, Any]], learning_rate: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)


def plain_sgd(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=learning_rate)


def one_group(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """Loses the groups, whose rates would then not be set."""
    return torch.optim.SGD([each for group in groups for each in group["params"]], lr=learning_rate)


def no_optimizer(groups: list[dict[str, Any]], learning_rate: float) -> str:
    return "none"


class Idle(torch.optim.Optimizer):
    def step(self, closure: Any = None) -> None:  # pyright: ignore
        return None


def idle(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    return Idle(groups, {"lr": learning_rate})

"""Means over samples and over targets, and when two of them are the same."""

from __future__ import annotations

from typing import Any

import torch

from flopsfit_ds.model.loss_traits import CountedEntries
from flopsfit_ds.train.data.outputs import tensors_of

IGNORED = -100
"""Targets that do not count: `ignore_index` of `torch.nn.functional.cross_entropy`, unless it is told another."""
SAMPLE_LOSS_FN = "sample_loss_fn(outputs, targets), the loss of each sample, [batch]"
_TOLERANCE = 2e-5
"""Between the loss of a batch and the mean of its samples' losses, which differ in the order of their sums."""


def count_entries(batch: Any, counted: CountedEntries) -> torch.Tensor:
    """Entries of each sample that are no `IGNORED`, [batch]."""
    entries = tensors_of(batch)[counted.leaf]
    if entries.ndim == 1:
        return (entries != IGNORED).long()
    return (entries[:, counted.start :] != IGNORED).flatten(1).sum(1)


def sample_weights(batch: Any, size: int, counted: CountedEntries | None) -> torch.Tensor:
    """What each sample of a batch counts in a mean, [batch]: its targets, or all alike where none are counted."""
    return torch.ones(size) if counted is None else count_entries(batch, counted)


def weighted_mean(losses: torch.Tensor, weights: torch.Tensor) -> float:
    """Mean in double precision; what weighs nothing may be no number."""
    weights = weights.double()
    counted = torch.where(weights > 0, losses.double(), 0.0)
    return ((weights * counted).sum() / weights.sum()).item()


def close(whole: float, mean: float, magnitude: float) -> bool:
    """Whether the loss of a batch is a mean, up to the order of sums."""
    return abs(whole - mean) <= _TOLERANCE * magnitude


def no_mean(size: int, whole: float, mean: float) -> str:
    """The refusal of a loss that is no mean over samples."""
    return (
        f"loss_fn: the loss of a batch of {size} is {whole:.6g} and the mean over its samples, each alone, is "
        f"{mean:.6g}; the held-out loss would not be what is trained: it must be a mean over samples (no sum) or over "
        f"targets that are not {IGNORED}, or give find_optimal a sample_loss_fn: {SAMPLE_LOSS_FN}"
    )

"""The decoder's weights in bf16, cast once an optimiser step: autocast casts them anew for every micro-batch.

They are autocast's own copies in all but how long they stay, and gradients are the same to the bit, in the same order.
"""

from __future__ import annotations

import torch
from torch import nn

from flopsfit_ds.memory.casts import keeps_casts
from flopsfit_ds.train.model.decoder import Decoder, Projection, TokenEmbedding


class KeptCasts:
    """Copies of all trained weights that are multiplied: from a step's beginning to its last forward pass."""

    def __init__(self, model: Decoder) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, Projection)]
        tables: list[TokenEmbedding] = [model.embedding] if model.tied else []
        # of frozen weights autocast keeps none, so that blocks without a gradient hold nothing
        self._layers = [layer for layer in (*layers, *tables) if layer.weight.requires_grad]

    def make(self) -> None:
        """Cast; the weights must not change before `drop`."""
        for layer in self._layers:
            layer.cast = layer.weight.detach().to(torch.bfloat16)

    def drop(self) -> None:
        """Let go: from here on the backward pass frees each copy when it is done with it."""
        for layer in self._layers:
            layer.cast = None


def kept_casts(
    model: nn.Module, precision: str, *, zero_stage: int, accumulation: int, activation_checkpointing: bool
) -> KeptCasts | None:
    """What casts a model's weights once a step; None where autocast does it, a micro-batch at a time.

    Only for the built-in decoder: another class may change its weights in the forward pass, or use some of them now
    with and now without gradients.
    """
    if precision != "bf16" or not isinstance(model, Decoder):
        return None
    return KeptCasts(model) if keeps_casts(zero_stage, accumulation, activation_checkpointing) else None

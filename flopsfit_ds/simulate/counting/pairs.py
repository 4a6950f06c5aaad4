"""What a class saves for each pair of a batch's samples: products of all with all, as contrastive losses take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from flopsfit_ds.simulate.counting.look import Looker

_BATCHES = (2, 4, 8)
"""Three looks tell what is saved once, for each sample and for each pair; normalisation over a batch refuses one."""


def saved_for_a_pair(
    build: Callable[[Looker], nn.Module], samples: Any, loss: Callable[[nn.Module, Any], torch.Tensor]
) -> int:
    """Bytes that the backward pass needs for each pair of samples; 0 where all that is saved is a sample's own.

    Saved bytes are a polynomial of the batch's size; this is the coefficient of its square, a byte where it is less.
    All choices among weights' values fall on the first, for draws would differ from batch to batch.

    Args:
        build: Builds the model in a place.
        samples: A collated batch, whose first sample is repeated.
        loss: `loss(model, batch)`.
    """
    looker = Looker(one_for_all=True)
    try:
        model = build(looker)
        few, more, many = (looker.look(model, _copies(samples, count), loss).saved_bytes for count in _BATCHES)
    except Exception:  # of the user's own code; the look at a batch of two says what it is
        return 0
    small, middle, large = _BATCHES
    rise = (many - more) / (large - middle) - (more - few) / (middle - small)
    return max(0, -int(-rise // (large - small)))


def _copies(samples: Any, count: int) -> Any:
    return _pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor[:1].repeat(count, *[1] * (tensor.ndim - 1)), samples
    )

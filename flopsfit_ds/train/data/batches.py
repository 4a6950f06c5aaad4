"""Trees of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a tree of tuples, lists and dictionaries, moved to a device; it is read on the CPU."""
    if device.type == "cpu":
        return batch
    return _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)

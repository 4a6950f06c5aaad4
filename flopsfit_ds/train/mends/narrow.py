"""Weights in bf16 at ZeRO-3 begin as they do at ZeRO-1 and 2: drawn in fp32, then rounded.

Under DeepSpeed's own bf16, `zero.Init` makes every tensor of a constructor in bf16: weights are other ones, since a
draw in bf16 takes other numbers, and tables of positions are wrong, since bf16 counts no further than 256.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def in_fp32(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration by which a model is built in parts of fp32."""
    return {key: value for key, value in config.items() if key != "bf16"}


def narrow_parts(model: nn.Module) -> None:
    """Round all weights that are in parts to bf16, as the engine wants to find them; buffers stay."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
        part = parameter.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]
        part.data = part.data.to(torch.bfloat16)

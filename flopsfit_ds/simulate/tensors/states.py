"""What bitsandbytes' 8-bit AdamW holds, without its kernels, which run on CUDA alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_BLOCK = 256  # elements that share a scale, as AdamW8bit passes to its kernels
_LEAST = 4096  # its `min_8bit_size`
_CODES = 256  # values that 8 bits stand for


class EightBitStates(torch.optim.Optimizer):
    """Two moments of a byte an element, a scale for 256 of them, two tables of codes; fp32 for small tensors."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(list(params), {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore
        """Make the states where there are none; kernels change weights in place and hold nothing else."""
        codes: list[torch.Tensor] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if state or parameter.grad is None:
                    continue
                if parameter.numel() < _LEAST:
                    state["state1"], state["state2"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                    continue
                device, blocks = parameter.device, -(-parameter.numel() // _BLOCK)
                codes = codes or [torch.zeros(_CODES, device=device) for _ in range(2)]
                for number in (1, 2):
                    state[f"state{number}"] = torch.zeros_like(parameter, dtype=torch.uint8)
                    state[f"absmax{number}"] = torch.zeros(blocks, device=device)
                    state[f"qmap{number}"] = codes[number - 1]

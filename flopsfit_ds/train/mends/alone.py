"""ZeRO-0 on one device without what only several need.

DeepSpeed 0.19.8 copies all gradients into a flat tensor to sum them over one rank, and back; reduces their norm over
one rank; and multiplies every gradient by the factor of clipping where that is 1. All of it gives back the same bits
(`scripts/bench_train.py` shows its price). What is replaced here is replaced on one engine, not in the library.
"""

from __future__ import annotations

from typing import Any

import torch

_EPSILON = 1e-6
"""Of DeepSpeed's clipping: part of every loss."""


def go_without_peers(engine: Any) -> None:
    """Let an engine of one rank reduce nothing, and clip and clear gradients without detours; bits stay the same."""
    parameters = list(engine.module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad and parameter.numel()]
    limit = float(engine.gradient_clipping())

    def complete(*_: Any, **__: Any) -> None:
        """A parameter that nothing passed through decays all the same, as one does on several ranks."""
        if engine.is_gradient_accumulation_boundary():
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def clip() -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            engine._global_grad_norm = scale_to_norm(gradients, limit)

    def clear() -> None:
        for parameter in parameters:
            parameter.grad = None

    engine.allreduce_gradients = complete
    engine.clip_fp32_gradients = clip
    engine.zero_grad = clear


def scale_to_norm(gradients: list[torch.Tensor], limit: float) -> torch.Tensor:
    """Scale gradients in place so that their norm over all is at most `limit`, by DeepSpeed's own arithmetic.

    Returns:
        The norm before.
    """
    of_each = torch._foreach_norm([gradient.float() for gradient in gradients])  # pyright: ignore[reportPrivateImportUsage]
    norms = torch.stack(of_each)
    norm = norms.square().sum().sqrt()
    factor = torch.full_like(norm, limit).div_(norm + _EPSILON).clamp_(max=1.0)  # a number over a tensor rounds twice
    if not (factor.is_cpu and factor >= 1):  # elsewhere the question costs more than the product
        torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
    return norm

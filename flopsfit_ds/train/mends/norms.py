"""The norm of the gradient at ZeRO-0, which DeepSpeed 0.19.8 computes where it clips, and forgets.

`get_global_grad_norm` is None there in fp32 (`findings/deepspeed_grad_norm_none.sh`): small points, which train at
ZeRO-0, would have no norm beside large ones that have. It is kept where DeepSpeed reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.utils import clip_grad_norm_


def keep_norm(engine: Any) -> None:
    """Let an engine at ZeRO-0 know the norm of each step's gradient, before clipping; what it trains stays the same."""
    if float(engine.gradient_clipping()) > 0:
        if "clip_fp32_gradients" not in vars(engine):  # else replaced by what keeps it

            def clip() -> None:
                limit, mpu = engine.gradient_clipping(), engine.mpu
                norm = clip_grad_norm_(parameters=engine.module.parameters(), max_norm=limit, mpu=mpu)
                engine._global_grad_norm = norm

            engine.clip_fp32_gradients = clip
        return

    def look(*_: Any) -> None:
        gradients = [each.grad.float() for each in engine.module.parameters() if each.grad is not None]
        if gradients:
            norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
            engine._global_grad_norm = torch.stack(norms).square().sum().sqrt()

    engine.optimizer.register_step_pre_hook(look)

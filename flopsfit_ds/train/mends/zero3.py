"""ZeRO-3 without the copy of its fp32 weights that nothing needs: one mend of DeepSpeed, guarded.

Where parameters are fp32, as under autocast, DeepSpeed means its master weights to be the parameters themselves
(pull request 7651). Version 0.19.8 compares a tensor's device with the name of one, which is never equal, and so copies
them: 4 bytes a parameter, over the ranks. For as long as the master weights are made, the name is a device here.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from flopsfit_ds.base.presets import wants_stock_zero3

_COMPARISON = "self.fp16_partitioned_groups_flat[i].device == self.device"


def share_master_weights() -> None:
    """Mend the installed DeepSpeed in this process, once; nothing where it is switched off or mended already."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    original = Stage3._create_fp32_partitions
    if wants_stock_zero3() or hasattr(original, "__wrapped__") or _COMPARISON not in inspect.getsource(original):
        return

    @functools.wraps(original)
    def mended(self: Any) -> None:
        name = self.device
        self.device = torch.device(name)
        try:
            original(self)
        finally:
            self.device = name

    Stage3._create_fp32_partitions = mended

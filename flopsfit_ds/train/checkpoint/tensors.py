"""Reading checkpoints without running what they say: DeepSpeed's own loaders, held to tensors and plain values."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""PyTorch's own switch: it holds `torch.load` to `weights_only=True` even where the caller asks for False."""
_PLAIN_CLASSES = [LossScaler, ZeroStageEnum, fragment_address]
"""All that DeepSpeed 0.19.8 writes at stages 0 to 3 in fp32 and bf16 that is no tensor, number, text or container."""


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Meanwhile, every `torch.load` of this process refuses a pickle that names anything else, before it is called."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        with torch.serialization.safe_globals(_PLAIN_CLASSES):
            yield
    finally:
        os.environ.pop(_VARIABLE)
        if before is not None:
            os.environ[_VARIABLE] = before

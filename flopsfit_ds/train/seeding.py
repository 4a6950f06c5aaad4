"""Every generator that a model, a loss or a dataset may draw from: Python's, NumPy's and torch's."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

_RANK_FACTOR = 0x9E3779B1
"""Golden ratio of 2**32: torch's CPU generator takes 32 bits of a seed, and there ranks lie far apart."""


def seed_everything(seed: int, rank: int = 0, device: torch.device | None = None) -> None:
    """Seed the global generators; ranks draw different numbers, as different samples should.

    `torch.manual_seed` seeds every backend that PyTorch was built with, one in use or not, at ten times the cost.

    Args:
        seed: Of rank 0.
        rank: Of the process group.
        device: In use beside the CPU.
    """
    seed += rank * _RANK_FACTOR
    random.seed(seed)
    np.random.seed([seed % 2**32, seed >> 32])
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of a CPU for a while, and put them back."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])

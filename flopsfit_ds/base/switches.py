"""Switches of the environment that planning and training read alike."""

from __future__ import annotations

import os

STOCK_ZERO3 = "FLOPSFIT_DS_STOCK_ZERO3"
"""Set to 1, DeepSpeed's ZeRO-3 is left as it is installed, with its copy of fp32 weights; see `train/zero3.py`."""


def wants_stock_zero3() -> bool:
    """Whether ZeRO-3 is to be left as it is installed."""
    return os.environ.get(STOCK_ZERO3, "0") not in ("", "0")

"""Versions of what trains: they stand in records, and in checkpoints."""

from __future__ import annotations

import platform
from typing import Any

import accelerate
import deepspeed
import torch
import transformers

import flopsfit_ds


def library_versions() -> dict[str, str]:
    """Versions of what trained."""
    modules: dict[str, Any] = {"torch": torch, "deepspeed": deepspeed, "accelerate": accelerate}
    modules |= {"transformers": transformers, "flopsfit_ds": flopsfit_ds}
    return {"python": platform.python_version()} | {name: module.__version__ for name, module in modules.items()}


def versions() -> dict[str, str]:
    """Versions of what writes and reads checkpoints."""
    modules: dict[str, Any] = {"flopsfit-ds": flopsfit_ds, "deepspeed": deepspeed, "torch": torch}
    return {name: str(module.__version__) for name, module in modules.items()}

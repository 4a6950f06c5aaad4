"""The decoder's blocks compiled: one graph for all layers, and eager blocks where the compiler fails."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from torch import nn

from flopsfit_ds.train.model.decoder import Decoder, Rotation, call_block

_log = logging.getLogger(__name__)
_REASON_LENGTH = 300
"""Characters of a compiler's words that a record keeps; the log of the attempt has all."""


class CompiledBlocks:
    """Calls blocks compiled until that fails once, and eagerly from then on.

    Attributes:
        failure: Why they are eager; None as long as they are compiled.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._compiled = torch.compile(call_block, dynamic=False)

    def __call__(
        self, block: nn.Module, x: torch.Tensor, rotation: Rotation | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The block's output."""
        if self.failure is None:
            try:
                return self._compiled(block, x, rotation, bias)
            except Exception as error:
                if not _is_the_compilers(error):
                    raise
                _log.warning("blocks are not compiled", exc_info=True)
                self.failure = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_LENGTH]
        return call_block(block, x, rotation, bias)


def compile_blocks(model: Decoder) -> CompiledBlocks:
    """Let a decoder's blocks be compiled when they are first trained."""
    # else a failure of the backward graph would come when the forward pass has long been done
    torch._functorch.config.force_non_lazy_backward_lowering = True  # pyright: ignore[reportAttributeAccessIssue]
    blocks = CompiledBlocks()
    model.train_block = blocks
    return blocks


def hide_hooks(model: nn.Module) -> None:
    """Keep the compiler out of what ZeRO-3 calls before and after each layer.

    It would make a graph of its own for the hooks of every layer, until it gives up at its limit of recompilations.
    """
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                hooks[key] = torch.compiler.disable(hook)


def keep_compiled_code_in(folder: Path, num_threads: int) -> None:
    """Let all runs of a sweep find what one has compiled; to be called before anything is.

    Args:
        folder: Of the sweep, which only its owner can write.
        num_threads: Of the compiler.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(num_threads)


def _is_the_compilers(error: Exception) -> bool:
    """Whether the compiler failed, and not what was compiled: running out of memory, say."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)

"""A model's blocks compiled: one graph for all layers, and eager blocks where the compiler fails."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flopsfit_ds.train.model.decoder import Decoder, call_block

_log = logging.getLogger(__name__)
_REASON_LENGTH = 300
"""Characters of a compiler's words that a record keeps; the log of the attempt has all."""


class CompiledBlocks:
    """Calls blocks compiled until that fails once, and eagerly from then on.

    Attributes:
        failure: Why they are eager; None as long as they are compiled.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self.failure: str | None = None
        self._call, self._compiled = call, torch.compile(call, dynamic=False)

    def __call__(self, block: nn.Module, *inputs: Any, **named: Any) -> Any:
        """The block's output."""
        if self.failure is None:
            try:
                return self._compiled(block, *inputs, **named)
            except Exception as error:
                if not _is_the_compilers(error):
                    raise
                _log.warning("blocks are not compiled", exc_info=True)
                self.failure = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_LENGTH]
        return self._call(block, *inputs, **named)

    def in_training(self, block: nn.Module, *inputs: Any, **named: Any) -> Any:
        """The block's output, eagerly where it is not trained: the loss of a run is measured without a compiler."""
        return (self if block.training else self._call)(block, *inputs, **named)


def compile_blocks(model: nn.Module) -> CompiledBlocks:
    """Let the blocks of the built-in decoder, or of a model of transformers, be compiled when they are first trained.

    A model of transformers whose blocks cannot be told is trained as it is, and says why.
    """
    from torch._functorch import config  # loaded by nothing else before the first compilation

    # else a failure of the backward graph would come when the forward pass has long been done
    config.force_non_lazy_backward_lowering = True
    if isinstance(model, Decoder):
        model.train_block = blocks = CompiledBlocks(call_block)
        return blocks
    from flopsfit_ds.train.model.hf import router_loss_weight  # transformers takes seconds to load

    blocks, layers = CompiledBlocks(_own_forward), _layers(model)
    if not layers:
        blocks.failure = f"{type(model).__name__} has no list of layers of one class, which would share a graph"
    elif router_loss_weight(getattr(model, "config", None)):
        layers = []
        blocks.failure = "a router's outputs are recorded in its block for the loss, which a compiled block does not do"
    for layer in layers:
        layer.forward = functools.partial(blocks.in_training, layer)
    return blocks


def _layers(model: nn.Module) -> list[nn.Module]:
    """The longest list of layers of one class."""
    stacks = [list(each) for each in model.modules() if isinstance(each, nn.ModuleList)]
    return max((stack for stack in stacks if len({type(layer) for layer in stack}) == 1), key=len, default=[])


def _own_forward(block: nn.Module, *inputs: Any, **named: Any) -> Any:
    """What a block's class does; compiled in its place, it takes the block, so that layers alike share one graph."""
    return type(block).forward(block, *inputs, **named)


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

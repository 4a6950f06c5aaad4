"""Which modules ZeRO-3 must gather whole, so that ranks whose batches pass other experts by still do the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Entered:
    """Notes which modules of a model a forward pass enters once, and through which a gradient passes.

    ZeRO-3 reduces the gradients of a module that it gathers whole when the gradient of its input is there: of an
    argument by position, without which it would reduce them before they are.
    """

    def __init__(self, model: nn.Module) -> None:
        """Watch a model until `close`."""
        self._calls: Counter[str] = Counter()
        self._passed: set[str] = set()
        self._hooks = [
            module.register_forward_hook(lambda _module, args, out, name=name: self._note(name, args, out))
            for name, module in model.named_modules()
            if name
        ]

    def _note(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        self._calls[name] += 1
        if _has_gradient(args) and _has_gradient(out if isinstance(out, tuple) else (out,)):
            self._passed.add(name)

    def close(self) -> None:
        """Watch no more."""
        for hook in self._hooks:
            hook.remove()

    @property
    def once(self) -> set[str]:
        """Names of the modules that were entered once, with a gradient in and out."""
        return {name for name in self._passed if self._calls[name] == 1}


def _has_gradient(values: Iterable[Any]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)


def leaf_modules(model: nn.Module, uneven: Iterable[str], entered: set[str]) -> tuple[str, ...]:
    """Names of the smallest modules that every batch enters and that hold all parameters a batch may pass by.

    Args:
        model: The model.
        uneven: Names of these parameters.
        entered: Modules that every batch enters once.

    Returns:
        Nothing where a parameter is in none of them, or is shared with a module outside.
    """
    found: set[str] = set()
    for name in uneven:
        owners = name.split(".")[:-1]
        around = (".".join(owners[:length]) for length in range(len(owners), 0, -1))
        leaf = next((module for module in around if module in entered), None)
        if leaf is None:
            return ()
        found.add(leaf)
    outermost = {name for name in found if not any(name.startswith(f"{other}.") for other in found)}
    owners_of: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        leaf = next((leaf for leaf in outermost if name.startswith(f"{leaf}.")), "")
        owners_of.setdefault(id(parameter), set()).add(leaf)
    return () if any(len(owners) > 1 for owners in owners_of.values()) else tuple(sorted(outermost))

"""Items that are no pairs, made pairs: a tensor alone, or a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""What PyTorch can hold and hardly compute with: token files are of such types."""


def as_tensor(leaf: Any) -> Any:
    """An array, or a list of numbers, as a tensor; unsigned integers as int64. Anything else is left as it is."""
    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(np.array(leaf))
    elif isinstance(leaf, (list, tuple)) and is_numeric(leaf):
        leaf = torch.tensor(leaf)
    if isinstance(leaf, torch.Tensor) and leaf.dtype in _UNSIGNED:
        return leaf.to(torch.int64)
    return leaf


def is_numeric(leaf: Any) -> bool:
    """Whether a batch can be made of it: a tensor, an array, a number, or lists of numbers that are equally long."""
    if isinstance(leaf, (torch.Tensor, np.generic, bool, int, float)):
        return True
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "biuf"
    if isinstance(leaf, (list, tuple)) and leaf:
        try:
            return np.asarray(leaf).dtype.kind in "biuf"
        except ValueError:  # lists of different lengths
            return False
    return False


@dataclass(frozen=True)
class Form:
    """How an item becomes a pair.

    Attributes:
        target: Entry of a dictionary that is the target; None where the item is a tensor, which is its own target.
        inputs: Entries that the model is handed, as keywords.
    """

    target: str | None = None
    inputs: tuple[str, ...] = ()

    def pair(self, item: Any) -> tuple[Any, Any]:
        """The pair of an item.

        Raises:
            KeyError: An entry is not there.
            TypeError: It is no dictionary, or no tensor.
        """
        if self.target is None:
            if not isinstance(item, (torch.Tensor, np.ndarray)):
                raise TypeError(f"it is a {type(item).__name__}, and the first item is a tensor")
            tensor = as_tensor(item)
            return tensor, tensor
        if not isinstance(item, Mapping):
            raise TypeError(f"it is a {type(item).__name__}, and the first item is a dictionary")
        return {name: as_tensor(item[name]) for name in self.inputs}, as_tensor(item[self.target])


@dataclass(frozen=True)
class Pairs:
    """A map-style dataset of pairs, from one of other items.

    Attributes:
        dataset: Map-style.
        form: How its items become pairs.
    """

    dataset: Any
    form: Form

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return self.form.pair(self.dataset[number])


@dataclass(frozen=True)
class Collated:
    """The items of a `DataLoader` with a collate function of its own, each collated alone.

    Attributes:
        dataset: Map-style.
        collate: The function; handed a list of one item, it returns a batch of one.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Any:
        return first_row(self.collate([self.dataset[number]]))


def first_row(batch: Any) -> Any:
    """The only sample of a batch of one: of Hugging Face's batches, which are mappings, a plain dictionary."""
    if isinstance(batch, Mapping):
        batch = dict(batch)
    return _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor[0], batch)

"""A sample of a dataset's items, looked at before anything is trained: all must be what the first one is."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.train.seeding import seeded

_LOOKED_AT = 64  # each is a call of the user's dataset; one item in twenty of another kind is met with 96%
_SEED = 0  # any, and always the same: the plan tells which items were looked at


def check_items(name: str, dataset: Any, first: Any) -> str:
    """See that the first, the last and some items drawn by seed are pairs of the same kinds and shapes as `first`.

    Args:
        name: The argument of `find_optimal` that the dataset is.
        dataset: Map-style, not empty.
        first: The pair that the others have to be like.

    Returns:
        What was looked at, for plan and record.

    Raises:
        DataError: An item raises, is no pair, or differs; it says which.
    """
    size = len(dataset)
    numbers = {0, size - 1, *random.Random(_SEED).sample(range(size), min(size, _LOOKED_AT - 2))}
    looked = f"{len(numbers)} of {size} items looked at"
    wanted = _kinds(first)
    for number in sorted(numbers):
        where = f"{name}: item {number}"
        try:
            with seeded(number):  # for a dataset that draws at random
                item = dataset[number]
        except Exception as error:  # whatever the user's code raises
            raise DataError(f"{where} raises {type(error).__name__}: {error} ({looked})") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            kind = f"{type(item).__name__} of {len(item)}" if isinstance(item, (tuple, list)) else type(item).__name__
            raise DataError(f"{where} is a {kind}; an item is a pair (inputs, targets) ({looked})")
        found = _kinds(item)
        if found.keys() != wanted.keys():
            odd = ", ".join(sorted(found.keys() ^ wanted.keys()))
            raise DataError(f"{where} has other parts than item 0 of dataset: {odd} ({looked})")
        for part, kind in found.items():
            if kind != wanted[part]:
                raise DataError(
                    f"{where}: {part} is {kind}, and that of item 0 of dataset is {wanted[part]}; pad or cut the items "
                    f"to one shape and one dtype ({looked})"
                )
    return f"{name}: {looked} before training, all alike"


def _kinds(item: Any) -> dict[str, str]:
    """Of each leaf of a pair what collating it depends on, in words."""
    found = {}
    for side, tree in zip(("inputs", "targets"), item, strict=True):
        for path, leaf in _pytree.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)[0]:
            found[side + _pytree.keystr(path)] = _kind(leaf)
    return found


def _kind(leaf: Any) -> str:
    if isinstance(leaf, (torch.Tensor, np.ndarray, np.generic)):
        return f"{type(leaf).__name__} {str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"
    return type(leaf).__name__

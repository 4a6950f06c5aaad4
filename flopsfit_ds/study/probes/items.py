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
_SHOWN = 3  # odd items, in a note of one line
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
        DataError: An item raises, is no pair, differs, or is another each time; it says which.
    """
    size = len(dataset)
    numbers = {0, size - 1, *random.Random(_SEED).sample(range(size), min(size, _LOOKED_AT - 2))}
    looked = f"{len(numbers)} of {size} items looked at"
    wanted = _kinds(first)
    infinite: dict[int, str] = {}
    for number in sorted(numbers):
        where = f"{name}: item {number}"
        try:
            item = _item(dataset, number)
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
        if number in (0, size - 1) and not _same(item, _item(dataset, number)):
            raise DataError(
                f"{where} is another each time it is looked at, though the generators of Python, NumPy and torch are "
                "seeded alike: it draws from one of its own, so that no loss could be had again; let it draw from "
                f"torch's, or seed its own by the item's number ({looked})"
            )
        if not _is_finite(item):
            infinite[number] = "has infinite values or some that are no numbers"
    said = "".join(f"; item {number} {what}" for number, what in list(infinite.items())[:_SHOWN])
    return f"{name}: {looked} before training, all of one kind{said}"


def _item(dataset: Any, number: int) -> Any:
    with seeded(number):  # for a dataset that draws at random
        return dataset[number]


def _leaves(item: Any) -> list[Any]:
    leaves = _pytree.tree_leaves(tuple(item))
    return [_array(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True)


def _same(one: Any, other: Any) -> bool:
    pairs = zip(_leaves(one), _leaves(other), strict=True)
    return all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") if isinstance(a, np.ndarray) else a == b or a != a
        for a, b in pairs
    )


def _is_finite(item: Any) -> bool:
    return all(
        bool(np.isfinite(leaf).all())
        for leaf in _leaves(item)
        if isinstance(leaf, (float, np.ndarray, np.floating)) and np.asarray(leaf).dtype.kind == "f"
    )


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

"""Items of an iterable, written to a file once: a step's samples are then found by number, in any order."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.base.storage import cannot_write


@dataclass(frozen=True)
class Leaf:
    """A tensor of every item.

    Attributes:
        dtype: Its type, by torch's name.
        shape: Its shape.
        is_number: Whether the item holds a Python number instead.
    """

    dtype: str
    shape: tuple[int, ...]
    is_number: bool

    @property
    def kind(self) -> torch.dtype:
        """Its type."""
        return getattr(torch, self.dtype)

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.kind.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class StoredItems:
    """Items in a file, each as many bytes.

    Attributes:
        path: The file.
        count: Items.
        leaves: What an item consists of.
        structure: How: the item, with the number of a leaf in the place of each.
    """

    path: str
    count: int
    leaves: tuple[Leaf, ...]
    structure: Any

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < self.count:
            raise IndexError(number)
        record = _open(self.path, sum(leaf.num_bytes for leaf in self.leaves))[number]
        found, start = [], 0
        for leaf in self.leaves:
            content = bytearray(record[start : start + leaf.num_bytes])
            start += leaf.num_bytes
            tensor = torch.frombuffer(content, dtype=leaf.kind).reshape(leaf.shape) if content else (
                torch.empty(leaf.shape, dtype=leaf.kind)
            )  # fmt: skip
            found.append(tensor.item() if leaf.is_number else tensor)
        return _pytree.tree_map(lambda place: found[place], self.structure)


@functools.lru_cache(maxsize=8)
def _open(path: str, record_bytes: int) -> np.ndarray:
    return np.asarray(np.memmap(path, np.uint8, mode="r")).reshape(-1, record_bytes)


def store(name: str, items: Iterable[Any], count: int, folder: Path) -> StoredItems:
    """Write so many items to a file that is named by what they are.

    Args:
        name: The argument of `find_optimal` that they are.
        items: Pairs, all alike.
        count: How many there are said to be.
        folder: Where the file is written.

    Raises:
        DataError: The items end early, or one is unlike the first, or holds what is no number.
        SweepFolderError: The file cannot be written.
    """
    temporary = folder / f".items.{os.getpid()}.tmp"
    digest = hashlib.sha256()
    leaves: tuple[Leaf, ...] | None = None
    structure: Any = None
    written = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            for item in items:
                if written == count:
                    break
                flat, form = _pytree.tree_flatten(item)
                found = tuple(_leaf(f"{name}: item {written}", value) for value in flat)
                if leaves is None:
                    leaves, structure = found, _pytree.tree_unflatten(list(range(len(flat))), form)
                if found != leaves:
                    raise DataError(
                        f"{name}: item {written} is {', '.join(map(str, found))}, and the first is "
                        f"{', '.join(map(str, leaves))}; pad or cut the items to one shape and one dtype"
                    )
                for value in flat:
                    content = _bytes_of(value)
                    digest.update(content)
                    stream.write(content)
                written += 1
        if leaves is None or written < count:
            raise DataError(
                f"{name}: it ends early: it says that it has {count} samples, and gave {written}; correct its length, "
                "or give find_optimal num_samples"
            )
        digest.update(repr((leaves, structure, count)).encode())
        path = folder / f"items-{digest.hexdigest()[:16]}.bin"
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(temporary, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    return StoredItems(str(path.absolute()), count, leaves, structure)


def _leaf(where: str, value: Any) -> Leaf:
    if isinstance(value, torch.Tensor):
        return Leaf(str(value.dtype).removeprefix("torch."), tuple(value.shape), is_number=False)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _leaf(where, torch.from_numpy(value))
    if isinstance(value, (bool, int, float, np.generic)):
        kind = str(torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None).dtype)
        return Leaf(kind.removeprefix("torch."), (), is_number=True)
    raise DataError(f"{where} holds a {type(value).__name__}; items of an iterable are tensors, arrays and numbers")


def _bytes_of(value: Any) -> bytes:
    if not isinstance(value, torch.Tensor):
        value = torch.from_numpy(value) if isinstance(value, np.ndarray) else torch.tensor(
            value, dtype=torch.float64 if isinstance(value, float) else None
        )  # fmt: skip
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

"""Arrays that NumPy maps from a file: workers map the file again, and are not sent its content."""

from __future__ import annotations

import functools
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class MappedRows:
    """Rows of an array in a file.

    Attributes:
        path: The file.
        dtype: Of its elements, as NumPy writes it.
        offset: Bytes before the first.
        shape: Of the array.
    """

    path: str
    dtype: str
    offset: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, number: int) -> np.ndarray:
        return np.array(_open(self)[number])


@functools.lru_cache(maxsize=8)
def _open(rows: MappedRows) -> np.ndarray:
    return np.asarray(np.memmap(rows.path, np.dtype(rows.dtype), mode="r", offset=rows.offset, shape=rows.shape))


def mapped_rows(array: np.memmap) -> MappedRows | None:
    """The rows of a mapped array, or of a part of one; None where they do not lie one after the other in a file."""
    mapping = getattr(array, "_mmap", None)
    name = getattr(array, "filename", None)
    if mapping is None or name is None or not array.flags.c_contiguous or array.dtype.hasobject:
        return None
    begin = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
    within = array.__array_interface__["data"][0] - begin  # a part keeps the offset of the whole
    before = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    return MappedRows(str(Path(name).absolute()), array.dtype.str, before + within, array.shape)

"""A file of token ids: of what kind it is, of what type its ids, and how that is known."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.formats.containers import check_is_ids, odd_rows
from flopsfit_ds.data.formats.evidence import check_dtype, find_dtype, sample_blocks
from flopsfit_ds.data.formats.layout import BYTES_PER_ID, Layout
from flopsfit_ds.data.formats.llmc import is_llmc, read_llmc
from flopsfit_ds.data.formats.megatron import index_of, read_index
from flopsfit_ds.data.formats.npy import MAGIC, read_npy


def read_layout(path: Path, dtype: str | None, vocab_size: int) -> Layout:
    """How a file stores its ids: by its header or index, else as the spec says, else by the evidence of samples.

    Args:
        path: The file.
        dtype: What the spec says, or None.
        vocab_size: Of the model.

    Raises:
        DataError: No file that can be read, a damaged one, or one that contradicts the spec.
    """
    if not path.is_file() or not os.access(path, os.R_OK):
        raise DataError(f"data.path: {path} is no file that can be read; it takes a .bin or .npy file of token ids")
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise DataError(f"data.path: {path} is empty; it takes a .bin or .npy file of token ids")
    layout = _stated_layout(path, num_bytes)
    if layout is not None and dtype not in (None, layout.dtype):
        raise DataError(
            f"data.path: {path} holds {layout.dtype}, says {layout.known_by}; the spec says data.dtype: {dtype}: "
            f"write {layout.dtype}, or leave it out"
        )
    blocks = sample_blocks(path, layout.offset if layout else 0, num_bytes)
    if layout is None:
        check_is_ids(path, blocks, vocab_size)
        layout = _headless_layout(
            path, num_bytes, dtype or find_dtype(path, blocks, vocab_size), given=dtype is not None
        )
    check_width(layout.dtype, vocab_size, f"{path}: ")
    check_dtype(path, blocks, layout.dtype, vocab_size)
    return replace(layout, odd=odd_rows(path, blocks, layout, given=dtype is not None))


def check_width(dtype: str, vocab_size: int, where: str = "") -> None:
    """See that a type can hold every id of a vocabulary.

    Raises:
        DataError: It cannot: larger ids would have been cut when the file was written.
    """
    largest = 1 << (8 * BYTES_PER_ID[dtype] - (dtype.startswith("int")))
    if vocab_size > largest:
        raise DataError(
            f"data.dtype: {where}{dtype} holds no id above {largest - 1}, and model.vocab_size is {vocab_size}: larger "
            "ids were cut when the file was written; write them as uint32 or int32, or set model.vocab_size to "
            f"{largest} or less"
        )


def _stated_layout(path: Path, num_bytes: int) -> Layout | None:
    """What the file, or the index beside it, says of itself; None of a file that says nothing."""
    with path.open("rb") as stream:
        head = stream.read(12)
    if path.suffix == ".npy" or head.startswith(MAGIC):
        return read_npy(path, num_bytes)
    if is_llmc(head):
        return read_llmc(path, head, num_bytes)
    index = index_of(path)
    return None if index is None else read_index(index, path, num_bytes)


def _headless_layout(path: Path, num_bytes: int, dtype: str, *, given: bool) -> Layout:
    count, rest = divmod(num_bytes, BYTES_PER_ID[dtype])
    if rest or not count:
        raise DataError(
            f"data.path: {path} has {num_bytes} bytes, which is no whole number of {dtype} ids; it is cut short: write "
            "it again, or give another data.dtype"
        )
    known_by = "data.dtype" if given else "the evidence of its samples: only so are they ids of the vocabulary"
    return Layout("raw", dtype, 0, count, known_by)

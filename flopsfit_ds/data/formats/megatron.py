"""Megatron's pair of files: ids in `.bin`, and an `.idx` beside it that says their type and the documents' sizes.

Source: `megatron/core/datasets/indexed_dataset.py`: magic of 9 bytes, version (uint64), code of the type (uint8),
number of sequences and of document bounds (uint64 each); then sizes (int32), byte offsets (int64), bounds (int64).
"""

from __future__ import annotations

import itertools
import os
import struct
import sys
from array import array
from pathlib import Path
from typing import BinaryIO

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.formats.layout import BYTES_PER_ID, Layout

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<QBQQ")
_CODES = {1: "uint8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
"""`DType` of megatron/core/datasets/indexed_dataset.py; 6 and 7 are floats."""
_LOOKED_AT = 64  # documents, evenly spread, first and last included: each is a read of some bytes


def index_of(path: Path) -> Path | None:
    """The `.idx` beside a `.bin`, or beside the file that a symbolic link leads to; None where there is none."""
    if path.suffix != ".bin":
        return None
    for candidate in (path.with_suffix(".idx"), path.resolve().with_suffix(".idx")):
        if candidate.is_file():
            return candidate
    return None


def pair_of(path: Path) -> Path:
    """The `.bin` of a pair that is named by it, by its `.idx`, or by what both are put behind.

    Raises:
        DataError: One of the two is missing.
    """
    bare = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    pair = [bare.with_name(bare.name + suffix) for suffix in (".bin", ".idx")]
    for file in pair:
        if not file.is_file():
            raise DataError(f"data.path: {file}: no such file; Megatron's ids are a .bin and an .idx beside it")
    return pair[0]


def read_index(index: Path, path: Path, num_bytes: int) -> Layout:
    """What an index says of the `.bin` beside it.

    Raises:
        DataError: It is no index of Megatron's, of another version, damaged, or of another file.
    """
    remedy = "write the pair again, or move the index away and give data.dtype"
    size = index.stat().st_size
    with index.open("rb") as stream:
        magic = stream.read(len(_MAGIC))
        if magic != _MAGIC:
            raise DataError(
                f"data.path: {index} beside {path.name} is no Megatron index: it begins {magic!r}; {remedy}"
            )
        head = stream.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise DataError(f"data.path: {index} is cut short: {size} bytes; {remedy}")
        version, code, sequences, bounds = _HEAD.unpack(head)
        if version != 1:
            raise DataError(f"data.path: {index} is of version {version}; version 1 can be read: {remedy}")
        if code not in _CODES:
            raise DataError(f"data.path: {index} gives code {code} for the type of the ids, no integer; {remedy}")
        begin = stream.tell()
        needed = begin + 12 * sequences + 8 * bounds
        if sequences < 1 or size not in (needed, needed + sequences):  # a byte a sequence more where modes are kept
            raise DataError(
                f"data.path: {index} tells of {sequences} sequences and {bounds} bounds, {needed} bytes, and has "
                f"{size}; {remedy}"
            )
        width = BYTES_PER_ID[_CODES[code]]
        last = sequences - 1
        previous_end = 0
        for number in sorted({last * step // _LOOKED_AT for step in range(_LOOKED_AT + 1)}):
            length, start = _sequence(stream, begin, sequences, number)
            follows = number == last or _sequence(stream, begin, sequences, number + 1)[1] == start + length * width
            if length < 0 or start < previous_end or not follows or (number == 0 and start):
                raise DataError(
                    f"data.path: {index}: sequence {number} does not lie where the one before ends; {remedy}"
                )
            previous_end = start + length * width
    if previous_end != num_bytes:
        raise DataError(
            f"data.path: {index} tells of {previous_end} bytes of {_CODES[code]} ids, and {path.name} has {num_bytes}; "
            f"it is cut short, or the index is another file's: {remedy}"
        )
    if num_bytes == 0:
        raise DataError(f"data.path: {path} is empty; it takes a file of token ids")
    documents = f"{sequences} sequences in {max(bounds - 1, 0)} documents"
    return Layout("megatron", _CODES[code], 0, num_bytes // width, f"{index.name} beside it: {documents}")


def read_bounds(index: Path) -> array[int]:
    """Ids up to the end of each document, of an index that `read_index` has looked at."""
    with index.open("rb") as stream:
        stream.seek(len(_MAGIC))
        _, _, sequences, bounds = _HEAD.unpack(stream.read(_HEAD.size))
        sizes, firsts = array("i", stream.read(4 * sequences)), array("q")
        stream.seek(8 * sequences, os.SEEK_CUR)
        firsts.frombytes(stream.read(8 * bounds))
    if sys.byteorder == "big":
        sizes.byteswap()
        firsts.byteswap()
    ends = array("q", itertools.accumulate(sizes, initial=0))
    return array("q", (ends[first] for first in firsts[1:]))


def _sequence(stream: BinaryIO, begin: int, sequences: int, number: int) -> tuple[int, int]:
    """Ids and byte offset of a sequence."""
    stream.seek(begin + 4 * number)
    (length,) = struct.unpack("<i", stream.read(4))
    stream.seek(begin + 4 * sequences + 8 * number)
    (start,) = struct.unpack("<q", stream.read(8))
    return length, start

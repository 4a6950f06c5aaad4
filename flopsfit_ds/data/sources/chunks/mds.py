"""Folders that MosaicML's `streaming` wrote: MDS shards with an `index.json` (read as its version 0.13 writes them).

A shard begins with the number of samples and the byte offsets of each and of the end (uint32); a sample with the sizes
of its columns that have no fixed one (uint32 each), then the columns.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.formats.layout import ARRAY_CODES, BYTES_PER_ID
from flopsfit_ds.data.sources.chunks.index import check_size, read_index, read_offsets
from flopsfit_ds.data.sources.reading import Batch, Ids, Piece, Reading, batched, no_column, no_documents

_IDS = "ndarray:"


def files_of(folder: Path) -> list[Path]:
    """The shards, in the order of the index.

    Raises:
        DataError: No index, one of another format, or a shard that is missing, compressed or cut short.
    """
    files = []
    for shard in _shards(folder):
        if shard.get("compression"):
            raise DataError(
                f"data.path: {folder}: its shards are compressed ({shard['compression']}); write them with "
                "compression=None, or decompress them and their index"
            )
        path = folder / str(shard["raw_data"]["basename"])
        check_size(path, int(shard["raw_data"]["bytes"]), folder)
        files.append(path)
    return files


def look(files: Sequence[Path], column: str) -> Literal["text", "ids", "bytes"]:
    """What the column's encoding says."""
    found: Literal["text", "ids"] = "text"
    for shard in _shards(files[0].parent):
        names, encodings = shard["column_names"], shard["column_encodings"]
        if column not in names:
            raise no_column(str(files[0].parent), column, names)
        encoding = encodings[names.index(column)]
        if encoding != "str" and _dtype_of(encoding) is None:
            raise no_documents(str(files[0].parent), column, encoding)
        found = "text" if encoding == "str" else "ids"
    return found


def split(files: Sequence[Path]) -> list[Piece]:
    """A shard is a piece."""
    return [Piece(number, 0, -1, path.stat().st_size) for number, path in enumerate(files)]


def read(files: Sequence[Path], reading: Reading, piece: Piece) -> Iterator[Batch]:
    """The documents of a shard."""
    path = files[piece.file]
    shard = _shards(path.parent)[piece.file]
    place = shard["column_names"].index(reading.column)
    encoding = shard["column_encodings"][place]
    documents = _column(path, shard["column_sizes"], place)
    if encoding == "str":
        yield from batched(each.decode("utf-8") for each in documents)
        return
    dtype = _dtype_of(encoding)
    assert dtype is not None
    for content in documents:
        ids = array(ARRAY_CODES[dtype])
        ids.frombytes(_without_shape(path, content, encoding))
        if sys.byteorder == "big":
            ids.byteswap()
        yield Ids(ids, [len(ids)])


def _column(path: Path, sizes: Sequence[int | None], place: int) -> Iterator[bytes]:
    """One column of each sample."""
    with path.open("rb") as stream:
        offsets = read_offsets(stream, path)
        variable = sizes.count(None)
        for start, end in pairwise(offsets):
            stream.seek(start)
            sample = stream.read(end - start)
            told = iter(struct.unpack(f"<{variable}I", sample[: 4 * variable]))
            lengths = [next(told) if size is None else size for size in sizes]
            begin = 4 * variable + sum(lengths[:place])
            if len(sample) < begin + lengths[place]:
                raise DataError(f"data.path: {path} ends early; write or fetch it again")
            yield sample[begin : begin + lengths[place]]


def _dtype_of(encoding: str) -> str | None:
    """Type of the ids of an `ndarray:TYPE` or `ndarray:TYPE:LENGTH`; None of anything else."""
    if not encoding.startswith(_IDS):
        return None
    dtype, _, shape = encoding.removeprefix(_IDS).partition(":")
    return dtype if dtype in BYTES_PER_ID and "," not in shape else None


def _without_shape(path: Path, content: bytes, encoding: str) -> bytes:
    """The ids of an array, which begins with its shape where that is not fixed.

    A byte holds the number of dimensions (times 4) and the width of a length (2 to the power of its two low bits).
    """
    if encoding.count(":") > 1:
        return content
    if not content or content[0] >> 2 != 1:
        raise DataError(f"data.path: {path} holds an array of {content[0] >> 2 if content else 0} dimensions, no row")
    return content[1 + (1 << (content[0] & 3)) :]


def _shards(folder: Path) -> list[dict[str, Any]]:
    index = read_index(folder, "streaming (MDS)")
    shards = index.get("shards")
    if not isinstance(shards, list) or not shards or any(shard.get("format") != "mds" for shard in shards):
        raise DataError(f"data.path: {folder}: its index.json is none of MDS shards; write the folder with MDSWriter")
    return shards

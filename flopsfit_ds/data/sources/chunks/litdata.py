"""Folders that litdata's `optimize` wrote (read as its version 0.2.76 writes them), every item of every chunk.

A chunk begins with the number of items and the byte offsets of each and of the end (uint32). An item has the sizes of
its leaves (uint32 each), then these; one that was written for the `TokensLoader` is its ids alone.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.formats.layout import ARRAY_CODES
from flopsfit_ds.data.sources.chunks.index import check_size, read_index, read_offsets
from flopsfit_ds.data.sources.reading import Batch, Ids, Piece, Reading, batched, no_column, no_documents

_DTYPES = {11: "uint8", 13: "int16", 14: "int16", 15: "int32", 16: "int32", 17: "int64", 18: "int64", 20: "uint16"}
"""Numbers of torch's integer types in `no_header_tensor:NUMBER`."""


def files_of(folder: Path) -> list[Path]:
    """The chunks, in the order of the index.

    Raises:
        DataError: No index, or a chunk that is missing, compressed or cut short.
    """
    index = _index(folder)
    for trait in ("compression", "encryption"):
        if index["config"].get(trait):
            raise DataError(f"data.path: {folder}: its chunks have {trait}; write them with {trait}=None")
    files = []
    for chunk in index["chunks"]:
        path = folder / str(chunk["filename"])
        check_size(path, int(chunk["chunk_bytes"]), folder)
        files.append(path)
    return files


def look(files: Sequence[Path], column: str) -> Literal["text", "ids", "bytes"]:
    """What the index says of a leaf: of an item that is a dictionary an entry, else all of it."""
    kind = _kind(files[0].parent, column)
    return "text" if kind == "str" else "ids"


def split(files: Sequence[Path]) -> list[Piece]:
    """A chunk is a piece."""
    return [Piece(number, 0, -1, path.stat().st_size) for number, path in enumerate(files)]


def read(files: Sequence[Path], reading: Reading, piece: Piece) -> Iterator[Batch]:
    """The documents of a chunk."""
    path = files[piece.file]
    kind = _kind(path.parent, reading.column)
    documents = _leaves(path, reading.column)
    if kind == "str":
        yield from batched(each.decode("utf-8") for each in documents)
        return
    for content in documents:
        ids = array(ARRAY_CODES[_DTYPES[int(kind.partition(":")[2])]])
        ids.frombytes(content)
        if sys.byteorder == "big":
            ids.byteswap()
        yield Ids(ids, [len(ids)])


def _leaves(path: Path, column: str) -> Iterator[bytes]:
    """One leaf of each item."""
    config = _index(path.parent)["config"]
    formats = config["data_format"]
    place = 0 if _names(config) == [""] else _names(config).index(column)
    alone = config.get("item_loader") == "TokensLoader"
    with path.open("rb") as stream:
        offsets = read_offsets(stream, path)
        for start, end in pairwise(offsets):
            stream.seek(start)
            item = stream.read(end - start)
            if len(item) < end - start:
                raise DataError(f"data.path: {path} ends early; write or fetch it again")
            if alone:
                yield item
                continue
            sizes = struct.unpack(f"<{len(formats)}I", item[: 4 * len(formats)])
            begin = 4 * len(formats) + sum(sizes[:place])
            yield item[begin : begin + sizes[place]]


def _kind(folder: Path, column: str) -> str:
    config = _index(folder)["config"]
    names = _names(config)
    if names != [""] and column not in names:
        raise no_column(str(folder), column, names)
    kind = str(config["data_format"][0 if names == [""] else names.index(column)])
    name, _, number = kind.partition(":")
    known = name == "no_header_tensor" and number.isdigit() and int(number) in _DTYPES
    if kind != "str" and not known:
        raise no_documents(str(folder), column, kind)
    return kind


def _names(config: dict[str, Any]) -> list[str]:
    """Entries of an item that is a dictionary; of one that is a single leaf, one without a name."""
    spec = json.loads(config["data_spec"])[1] if config.get("data_spec") else {}
    if spec.get("type") == "builtins.dict":
        return [str(name) for name in json.loads(spec["context"])]
    return [""] if spec.get("type") is None else [str(number) for number in range(len(config["data_format"]))]


def _index(folder: Path) -> dict[str, Any]:
    index = read_index(folder, "litdata.optimize")
    if not index.get("chunks") or not isinstance(index.get("config"), dict):
        raise DataError(f"data.path: {folder}: its index.json is none of litdata's; write the folder with optimize")
    return index

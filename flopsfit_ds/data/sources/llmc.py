"""Files of llm.c: ids without a word about documents."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.formats.layout import ARRAY_CODES, Layout
from flopsfit_ds.data.formats.llmc import is_llmc, read_llmc
from flopsfit_ds.data.sources.reading import PIECE_BYTES, Batch, Ids, Piece, Reading


def look(files: Sequence[Path], column: str) -> Literal["text", "ids", "bytes"]:
    """Ids; every file's header must agree with its size, and all with each other."""
    kinds: dict[str, Path] = {}
    for path in files:
        kinds.setdefault(layout_of(path).dtype, path)
    if len(kinds) > 1:
        told = ", ".join(f"{dtype} in {path.name}" for dtype, path in kinds.items())
        raise DataError(f"data.paths: files of different types: {told}; name files of one kind")
    return "ids"


def layout_of(path: Path) -> Layout:
    """What a file's header says.

    Raises:
        DataError: It is none of llm.c.
    """
    with path.open("rb") as stream:
        head = stream.read(12)
    if not is_llmc(head):
        raise DataError(f"data.paths: {path} is no file of llm.c; data.source: tokens reads other files of ids")
    return read_llmc(path, head, path.stat().st_size)


def split(files: Sequence[Path]) -> list[Piece]:
    """Ranges of bytes."""
    pieces = []
    for number, path in enumerate(files):
        size = path.stat().st_size
        for start in range(layout_of(path).offset, size, PIECE_BYTES):
            end = min(start + PIECE_BYTES, size)
            pieces.append(Piece(number, start, end, end - start))
    return pieces


def read(files: Sequence[Path], reading: Reading, piece: Piece) -> Iterator[Batch]:
    """The ids of a range."""
    path = files[piece.file]
    dtype = layout_of(path).dtype
    ids = array(ARRAY_CODES[dtype])
    with path.open("rb") as stream:
        stream.seek(piece.start)
        ids.frombytes(stream.read(piece.end - piece.start))
    if sys.byteorder == "big":
        ids.byteswap()
    yield Ids(ids, None)

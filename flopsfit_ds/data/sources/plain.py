"""Text files: each is a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.sources.reading import PIECE_BYTES, Batch, Piece, Reading


def look(files: Sequence[Path], column: str) -> Literal["text", "ids", "bytes"]:
    """Text; that it is UTF-8 is seen when it is read."""
    return "text"


def split(files: Sequence[Path]) -> list[Piece]:
    """A piece a file, and one for several small ones."""
    pieces: list[Piece] = []
    for number, path in enumerate(files):
        size = path.stat().st_size
        last = pieces[-1] if pieces else None
        if last is not None and last.num_bytes + size <= PIECE_BYTES:
            pieces[-1] = Piece(last.file, 0, number + 1 - last.file, last.num_bytes + size)
        else:
            pieces.append(Piece(number, 0, 1, size))
    return pieces


def read(files: Sequence[Path], reading: Reading, piece: Piece) -> Iterator[Batch]:
    """The files of a piece, one at a time."""
    for path in files[piece.file : piece.file + piece.end]:
        if reading.holds == "bytes":
            yield [path.read_bytes()]
            continue
        try:
            yield [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise DataError(f"data.paths: {path}: not UTF-8 ({error.reason} at byte {error.start})") from None

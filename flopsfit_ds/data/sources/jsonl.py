"""JSON lines: a document is a value of each line's object. Compressed files are read as one piece."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.sources.reading import (
    BATCH_CHARACTERS,
    PIECE_BYTES,
    Batch,
    Ids,
    Piece,
    Reading,
    batched,
    no_column,
    no_documents,
)

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_UNKNOWN = (".zst", ".zstd", ".lz4", ".br", ".zip")
_TAIL_BYTES = 1 << 20  # the last line lies within it, or its end is not looked at
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError)


def look(files: Sequence[Path], column: str) -> Literal["text", "ids", "bytes"]:
    """What the first line of each file holds; of a file that is not compressed its last line must be whole, too."""
    kinds: dict[Literal["text", "ids", "bytes"], Path] = {}
    for path in files:
        if path.suffix in _UNKNOWN:
            raise DataError(
                f"data.paths: {path}: {path.suffix} cannot be read; decompress it, or write .gz, .xz or .bz2"
            )
        first = next(_lines(path, 0, -1), None)
        if first is None:
            raise DataError(f"data.paths: {path} is empty; it takes a JSON object a line")
        value = _value(path, *first, column)
        kinds[_kind(f"{path}: line 1", column, value)] = path
        if path.suffix not in _OPENERS:
            _see_the_end(path)
    if len(kinds) > 1:
        raise DataError(
            f"data.column: {column!r} holds text in {kinds['text']}, and ids in {kinds['ids']}; name files of one kind"
        )
    return next(iter(kinds))


def split(files: Sequence[Path]) -> list[Piece]:
    """Ranges of bytes; a line belongs to the range that it begins in."""
    pieces = []
    for number, path in enumerate(files):
        size = path.stat().st_size
        if path.suffix in _OPENERS:
            pieces.append(Piece(number, 0, -1, size))
            continue
        for start in range(0, size, PIECE_BYTES):
            end = min(start + PIECE_BYTES, size)
            pieces.append(Piece(number, start, end, end - start))
    return pieces


def read(files: Sequence[Path], reading: Reading, piece: Piece) -> Iterator[Batch]:
    """The documents of the lines that begin in a piece."""
    path = files[piece.file]
    values = (_value(path, *line, reading.column) for line in _lines(path, piece.start, piece.end))
    if reading.holds == "ids":
        yield from _ids(path, reading.column, values)
        return
    yield from batched(_texts(path, reading.column, values))


def _lines(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, each with the byte at which it begins."""
    with _opened(path) as stream:
        position = start
        if start:
            stream.seek(start - 1)
            position += len(stream.readline()) - 1
        while end < 0 or position < end:
            try:
                line = stream.readline()
            except _DAMAGED as error:
                raise DataError(
                    f"data.paths: {path} is damaged or ends early: {error}; write or fetch it again"
                ) from None
            if not line:
                return
            if line.strip():
                yield position, line
            position += len(line)


def _opened(path: Path) -> IO[bytes]:
    return _OPENERS[path.suffix](path, "rb") if path.suffix in _OPENERS else path.open("rb")


def _value(path: Path, position: int, line: bytes, column: str) -> Any:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith(b"\n") else " and ends early: it is cut short"
        raise DataError(
            f"data.paths: {path}: the line at byte {position:,} is no JSON ({error}){cut}; write or fetch it again"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"data.paths: {path}: the line at byte {position:,} is no JSON object but {type(row).__name__}")
    if column not in row:
        raise no_column(f"{path}: the line at byte {position:,}", column, row)
    return row[column]


def _kind(where: str, column: str, value: Any) -> Literal["text", "ids"]:
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and all(type(each) is int for each in value):
        return "ids"
    found = f"a list of {type(value[0]).__name__}" if isinstance(value, list) and value else type(value).__name__
    raise no_documents(where, column, found)


def _texts(path: Path, column: str, values: Iterator[Any]) -> Iterator[str]:
    for value in values:
        if not isinstance(value, str):
            raise no_documents(str(path), column, f"text, and once {type(value).__name__}")
        yield value


def _ids(path: Path, column: str, values: Iterator[Any]) -> Iterator[Ids]:
    together: list[int] = []
    lengths: list[int] = []
    for value in values:
        if _kind(str(path), column, value) != "ids":
            raise no_documents(str(path), column, f"ids, and once {type(value).__name__}")
        together += value
        lengths.append(len(value))
        if len(together) >= BATCH_CHARACTERS:
            yield Ids(together, lengths)
            together, lengths = [], []
    if lengths:
        yield Ids(together, lengths)


def _see_the_end(path: Path) -> None:
    """See that the last line is whole.

    Raises:
        DataError: It is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - _TAIL_BYTES))
        tail = stream.read()
    last = tail.rstrip().rpartition(b"\n")[2]
    if len(last) == len(tail) < size:
        return  # a line of more than the tail
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        raise DataError(
            f"data.paths: {path} ends early: its last line is cut short; write or fetch it again, or remove that line"
        ) from None

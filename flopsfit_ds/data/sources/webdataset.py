"""WebDataset: tar archives whose members of one sample share a name up to its first dot, by the standard library."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.sources.reading import BATCH_CHARACTERS, Batch, Ids, Piece, Reading, batched, no_column

_DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error)


def look(files: Sequence[Path], column: str) -> Literal["text", "ids", "bytes"]:
    """What the first sample of each archive holds under an extension, or of a JSON member under `json.ENTRY`."""
    found: Literal["text", "ids"] = "text"
    for path in files:
        first = next(_documents(path, column), None)
        if first is None:
            raise no_column(str(path), column, _extensions(path))
        found = "ids" if isinstance(first, list) else "text"
    return found


def split(files: Sequence[Path]) -> list[Piece]:
    """An archive is a piece."""
    return [Piece(number, 0, -1, path.stat().st_size) for number, path in enumerate(files)]


def read(files: Sequence[Path], reading: Reading, piece: Piece) -> Iterator[Batch]:
    """The documents of an archive."""
    path = files[piece.file]
    documents = _documents(path, reading.column)
    if reading.holds != "ids":
        yield from batched(_of_kind(path, documents, str))
        return
    together: list[int] = []
    lengths: list[int] = []
    for ids in _of_kind(path, documents, list):
        together += ids
        lengths.append(len(ids))
        if len(together) >= BATCH_CHARACTERS:
            yield Ids(together, lengths)
            together, lengths = [], []
    if lengths:
        yield Ids(together, lengths)


def _documents(path: Path, column: str) -> Iterator[Any]:
    """What each sample holds under a column."""
    extension, _, entry = column.partition(".") if column.startswith("json.") else (column, "", "")
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if not member.isfile() or _extension(member.name) != extension:
                    continue
                stream = archive.extractfile(member)
                assert stream is not None
                content = stream.read()
                if len(content) < member.size:
                    raise DataError(f"data.paths: {path} ends early, in {member.name}; write or fetch it again")
                yield _entry(path, member.name, content, entry) if entry else content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"data.paths: {path}: a member .{extension} is no UTF-8 ({error.reason})") from None
    except _DAMAGED as error:
        raise DataError(f"data.paths: {path} is no tar archive, or ends early: {error}") from None


def _entry(path: Path, name: str, content: bytes, entry: str) -> Any:
    try:
        row = json.loads(content)
    except ValueError as error:
        raise DataError(f"data.paths: {path}: {name} is no JSON ({error})") from None
    if not isinstance(row, dict) or entry not in row:
        raise no_column(f"{path}: {name}", entry, row if isinstance(row, dict) else ())
    value = row[entry]
    if isinstance(value, str) or (isinstance(value, list) and all(type(each) is int for each in value)):
        return value
    raise DataError(f"data.column: {path}: {name}: {entry!r} is neither text nor a list of ids")


def _of_kind(path: Path, documents: Iterator[Any], kind: type) -> Iterator[Any]:
    for document in documents:
        if not isinstance(document, kind):
            raise DataError(f"data.column: {path} holds text and ids under one column")
        yield document


def _extension(name: str) -> str:
    """All behind the first dot of a member's last name, as WebDataset splits it."""
    return name.rpartition("/")[2].partition(".")[2]


def _extensions(path: Path) -> list[str]:
    with tarfile.open(path, "r|*") as archive:
        return sorted({_extension(member.name) for member in archive if member.isfile()})

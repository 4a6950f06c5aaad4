"""What all sources of documents have in common."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from flopsfit_ds.base.errors import DataError

Kind = Literal["text", "jsonl", "parquet", "arrow", "llm.c", "mds", "litdata", "webdataset"]
_HOMES: dict[str, str] = {
    "text": "plain",
    "jsonl": "jsonl",
    "parquet": "parquet",
    "arrow": "arrow",
    "llm.c": "llmc",
    "mds": "chunks.mds",
    "litdata": "chunks.litdata",
    "webdataset": "webdataset",
}
BATCH_CHARACTERS = 1 << 18
"""Documents come in batches of about so much text: a tokenizer's encodings take a hundred times as much memory."""
PIECE_BYTES = 1 << 24
"""Of a file that can be cut: 16 MiB are seconds of tokenising, which is what a kill costs a worker."""


@dataclass(frozen=True)
class Reading:
    """How the documents of a corpus are read.

    Attributes:
        kind: Of source.
        column: That holds a document; empty where there are no columns.
        holds: Text, ids, or bytes that are taken as ids.
        end_of_document: Id written after each document, or None.
    """

    kind: Kind
    column: str
    holds: Literal["text", "ids", "bytes"]
    end_of_document: int | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a corpus that is read by itself.

    Attributes:
        file: Number of the file.
        start: Where it begins, in the source's own units (bytes, row groups, record batches, files).
        end: Where the next begins; -1 for the file's end.
        num_bytes: About its size, for a progress bar.
    """

    file: int
    start: int
    end: int
    num_bytes: int


@dataclass(frozen=True)
class Ids:
    """A batch of documents that are ids already.

    Attributes:
        values: All ids, one after the other: a buffer or an array.
        lengths: Ids of each document; None where documents are not known.
    """

    values: Any
    lengths: Sequence[int] | None


Batch = list[str] | list[bytes] | Ids


class Source(Protocol):
    """What a module of this package offers."""

    def look(self, files: Sequence[Path], column: str) -> Literal["text", "ids", "bytes"]:
        """See that every file can be read and has the column; says what that holds.

        Raises:
            DataError: It cannot.
        """
        ...

    def split(self, files: Sequence[Path]) -> list[Piece]:
        """The pieces, in the order in which their documents follow each other."""
        ...

    def read(self, files: Sequence[Path], reading: Reading, piece: Piece) -> Iterator[Batch]:
        """The documents of a piece.

        Raises:
            DataError: A document cannot be read, or the file ends early.
        """
        ...


def source_of(kind: str) -> Source:
    """The module that reads a kind of source."""
    return cast(Source, importlib.import_module(f"flopsfit_ds.data.sources.{_HOMES[kind]}"))


def batched(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in batches of about `BATCH_CHARACTERS`."""
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def no_column(where: str, column: str, there: Iterable[str]) -> DataError:
    """The refusal of a column that does not exist."""
    names = sorted(map(str, there))
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return DataError(f"data.column: {where} has no column {column!r}; it has {shown or 'none'}")


def no_documents(where: str, column: str, found: str) -> DataError:
    """The refusal of a column of another type."""
    return DataError(f"data.column: {where}: {column!r} holds {found}; it takes text, or a list of integer token ids")

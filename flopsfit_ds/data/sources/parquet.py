"""Parquet files, by pyarrow: a document a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.sources.columns import documents_of, kind_of_column, pyarrow_for
from flopsfit_ds.data.sources.reading import Batch, Piece, Reading

_ROWS = 256  # documents at a time


def look(files: Sequence[Path], column: str) -> Literal["text", "ids", "bytes"]:
    """What the column of each file's schema holds; the footer, which is written last, must be there."""
    kinds: dict[Literal["text", "ids", "bytes"], Path] = {}
    for path in files:
        with _opened(path) as file:
            kinds[kind_of_column(str(path), file.schema_arrow, column)] = path
    if len(kinds) > 1:
        raise DataError(
            f"data.column: {column!r} holds text in {kinds['text']}, and ids in {kinds['ids']}; name files of one kind"
        )
    return next(iter(kinds))


def split(files: Sequence[Path]) -> list[Piece]:
    """A row group is a piece."""
    pieces = []
    for number, path in enumerate(files):
        with _opened(path) as file:
            sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
        pieces += [Piece(number, group, group + 1, size) for group, size in enumerate(sizes)]
    return pieces


def read(files: Sequence[Path], reading: Reading, piece: Piece) -> Iterator[Batch]:
    """The documents of a row group."""
    path = files[piece.file]
    arrow = pyarrow_for("parquet")
    with _opened(path) as file:
        try:
            for batch in file.iter_batches(_ROWS, row_groups=[piece.start], columns=[reading.column]):
                yield from documents_of(str(path), reading.column, batch.column(0))
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"data.paths: {path}: row group {piece.start} is damaged: {_first_line(error)}") from None


def _opened(path: Path) -> Any:
    arrow = pyarrow_for("parquet")
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"data.paths: {path} is no Parquet file, or ends early: {_first_line(error)}; write or fetch it again"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

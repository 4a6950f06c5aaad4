"""Columns of Arrow's tables, by pyarrow: what they hold, and their documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.sources.reading import Batch, Ids, batched, no_column, no_documents


def pyarrow_for(source: str) -> Any:
    """The library.

    Raises:
        DataError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"data.source: {source} needs pyarrow; install it with pip install 'flopsfit-ds[parquet]'"
        ) from None
    return pyarrow


def kind_of_column(where: str, schema: Any, column: str) -> Literal["text", "ids"]:
    """What a column of a schema holds.

    Raises:
        DataError: It is not there, or of no kind that documents can be.
    """
    types = pyarrow_for("parquet").types
    if column not in schema.names:
        raise no_column(where, column, schema.names)
    kind = schema.field(column).type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if lists and types.is_integer(kind.value_type):
        return "ids"
    raise no_documents(where, column, str(kind))


def documents_of(where: str, column: str, array: Any) -> Iterator[Batch]:
    """The documents of an array of such a column.

    Raises:
        DataError: A row is empty (null).
    """
    if array.null_count:
        raise DataError(
            f"data.column: {where}: {array.null_count} rows have no {column!r} (null); write the file without them"
        )
    types = pyarrow_for("parquet").types
    if types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        values = array.flatten()
        if values.null_count:
            raise DataError(f"data.column: {where}: {values.null_count} ids of {column!r} are null")
        yield Ids(values.to_numpy(zero_copy_only=False), array.value_lengths().to_pylist())
    else:
        yield from batched(array.to_pylist())

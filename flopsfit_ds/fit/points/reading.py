"""Read points from a table of any origin: CSV, JSON lines, Parquet, or the export of a tracker."""

import csv
import hashlib
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.base.storage import KIND_WORDS, kind_of
from flopsfit_ds.fit.points.columns import match_columns, read_number, unit_of
from flopsfit_ds.fit.points.points import CONVENTION, Exclusion, Point
from flopsfit_ds.fit.points.tracker_files import folder_rows, is_mlflow, mlflow_rows, tracker_files, wandb_rows
from flopsfit_ds.fit.points.trackers import trackio_rows, unfold
from flopsfit_ds.model.flops import FLOPS_PER_PARAMETER_TOKEN

MAX_ROWS = 100_000
"""The weights of 1,000 resamples take 8 bytes each: 0.8 GB."""
_BEYOND = "(beyond the header)"
_MAY_BE_UNREAD = ("global_batch",)
"""What no law is made of: a cell such as `8 x 64` leaves no run out."""
_TEXT = ("label", "run_id", "trunk", "schedule", "status", "reason")


@dataclass(frozen=True)
class PointTable:
    """What a table of results holds.

    Attributes:
        points: The rows that can be used.
        excluded: The others, each with its reason.
        columns: Quantity -> column of the table.
        convention: How a missing one of N, D and C was computed from the other two.
        source: Name of the file.
        sha256: Of the file's bytes.
    """

    points: tuple[Point, ...]
    excluded: tuple[Exclusion, ...]
    columns: dict[str, str]
    convention: str
    source: str
    sha256: str


def load_points(path: str | Path, columns: Mapping[str, str] | None = None) -> PointTable:
    """Read the points of a CSV, TSV, JSONL or Parquet file, or of what a tracker keeps or exports.

    See `trackers` for exports, and `tracker_files` for databases, event files and offline runs.

    Two of N, D and C give the third by C = 6 N D. Rows are numbered from 1 at the first row of data.

    Args:
        path: The file; its suffix says the format (.csv, .tsv, .jsonl, .ndjson, .json, .parquet, .pq, .db, .wandb). Or
            a folder of TensorBoard's event files, or of offline runs of Weights & Biases.
        columns: Quantity -> column name where the spelling is not a common one (see `columns.SPELLINGS`).

    Raises:
        DataError: The file cannot be read, holds no usable row, has more than 100,000 rows, or misses a quantity.
    """
    path = Path(path)
    table, digest = _read(path)
    rows, note = unfold(table)
    header = list(dict.fromkeys(itertools.chain.from_iterable(row.cells for row in rows[:1000])))
    found = match_columns(header, columns or {})
    _require(found, header, path)
    units = {quantity: unit_of(column, quantity) for quantity, column in found.items()}
    points: list[Point] = []
    excluded: list[Exclusion] = []
    if note is not None:
        excluded.append(Exclusion(None, None, note))
    for number, row in rows:
        outcome = _read_row(row, found, units, number)
        if isinstance(outcome, Point):
            points.append(outcome)
        else:
            excluded.append(outcome)
    if not points:
        shown = "; ".join(f"row {e.row}: {e.reason}" for e in excluded if e.row is not None)[:300]
        raise DataError(f"{path}: none of {len(rows)} rows can be used ({shown})")
    return PointTable(tuple(points), tuple(excluded), found, CONVENTION, path.name, digest)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV, JSONL or Parquet file, as it spells them.

    Raises:
        DataError: The file cannot be read, has no rows, or more than 100,000.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of a file, and SHA-256 of its bytes."""
    try:
        if path.is_dir():
            content = b"".join(file.read_bytes() for file in tracker_files(path))
            found = iter(folder_rows(path))
        else:
            content = path.read_bytes()
            if not content.strip():
                raise DataError(f"{path} is empty: it needs a header and a row for each run")
            found = _rows(path, content)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    rows = list(itertools.islice(found, MAX_ROWS + 1))
    if len(rows) > MAX_ROWS:
        raise DataError(
            f"{path} has more than {MAX_ROWS:,} rows: a law is fitted to final losses, one row for each run"
        )
    if not rows:
        raise DataError(f"{path} has a header but no rows")
    return rows, hashlib.sha256(content).hexdigest()


def _require(found: Mapping[str, str], header: list[str], path: Path) -> None:
    listing = ", ".join(header)
    if "loss" not in found:
        raise DataError(f"{path}: no column of losses among {listing}; name it with --loss-column")
    if sum(name in found for name in ("num_params", "num_tokens", "flops")) < 2:
        raise DataError(
            f"{path}: two of parameters, tokens and FLOPs are needed, found "
            f"{', '.join(n for n in ('num_params', 'num_tokens', 'flops') if n in found) or 'none'} among {listing}; "
            "name them with --num-params-column, --num-tokens-column, --flops-column"
        )


def _rows(path: Path, content: bytes) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix in (".db", ".sqlite"):
        return iter(mlflow_rows(path) if is_mlflow(path) else trackio_rows(path))
    if suffix == ".wandb":
        return iter(wandb_rows(path))
    if suffix in (".parquet", ".pq"):
        return _parquet_rows(path, content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8 (byte {error.start}): save it as UTF-8 or as Parquet") from error
    if "\0" in text:
        raise DataError(f"{path} is no text (byte {text.index(chr(0))} is zero): save it as CSV in UTF-8 or as Parquet")
    kind = kind_of(path) if suffix in (".json", ".yaml", ".yml") else None
    if kind in ("fit", "forecast", "yaml"):
        raise DataError(f"{path} is {KIND_WORDS[kind]}; a table is needed here: .csv, .tsv, .jsonl or .parquet")
    if suffix in (".jsonl", ".ndjson", ".json"):
        return _json_rows(path, text)
    if suffix in (".csv", ".tsv", ".txt"):
        return _csv_rows(path, text)
    raise DataError(
        f"{path}: unknown format {suffix or '(no suffix)'!r}; use .csv, .tsv, .jsonl, .parquet, or a tracker's .db or "
        ".wandb"
    )


def _csv_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max((",", "\t", ";"), key=first.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey=_BEYOND)
        names = [name.strip() for name in reader.fieldnames or () if name.strip()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{path} has several columns called {', '.join(twice)}: rename all but one")
        for row in reader:
            yield {k: v for k, v in row.items() if k is not None}
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV table: {error}") from error


def _json_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    whole = text.strip()
    if whole.startswith("["):
        try:
            items = json.loads(whole)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: {error}") from error
        numbered: Iterable[tuple[int, Any]] = enumerate(items, start=1)
    else:
        numbered = _json_lines(path, text)
    for number, item in numbered:
        if not isinstance(item, dict):
            raise DataError(f"{path}, item {number}: an object of columns is needed, got {type(item).__name__}")
        yield item


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number} is not JSON: {error}; give an object a line, or one list of objects"
                ) from error


def _parquet_rows(path: Path, content: bytes) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{path}: Parquet needs pyarrow; install flopsfit-ds[parquet] or convert to CSV") from error
    try:
        table = parquet.ParquetFile(io.BytesIO(content))
        if table.metadata.num_rows > MAX_ROWS:
            raise DataError(
                f"{path} has {table.metadata.num_rows:,} rows: a law is fitted to final losses, one row for each run"
            )
        return iter(table.read().to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}") from error


def _read_row(
    row: Mapping[str, Any], found: Mapping[str, str], units: Mapping[str, float], number: int
) -> Point | Exclusion:
    texts = {q: str(row.get(found[q]) or "").strip() or None for q in _TEXT if q in found}
    name = texts.get("label") or texts.get("run_id")
    status = texts.get("status")
    if status is not None and status.lower() not in ("completed", "finished", "done", "success", "ok"):
        reason = texts.get("reason")
        return Exclusion(number, name, f"status {status}" + (f": {reason}" if reason else ""))
    surplus = [cell for cell in row.get(_BEYOND) or () if str(cell).strip()]
    if surplus:
        return Exclusion(
            number, name, f"{len(surplus)} cells more than the header has columns: quote numbers that hold separators"
        )
    values: dict[str, float | None] = {}
    for quantity, column in found.items():
        if quantity in _TEXT:
            continue
        try:
            value = read_number(row.get(column))
            values[quantity] = None if value is None else value * units[quantity]
        except ValueError as error:
            if quantity in _MAY_BE_UNREAD:
                continue
            return Exclusion(number, name, f"column {column}: {error}")
    if values.get("loss") is None:
        return Exclusion(number, name, f"column {found['loss']} is empty")
    return _complete(values, texts, number, name)


def _complete(
    values: dict[str, float | None], texts: dict[str, str | None], number: int, name: str | None
) -> Point | Exclusion:
    """Fill in the third of N, D and C."""
    n, d, c = values.get("num_params"), values.get("num_tokens"), values.get("flops")
    given = [v for v in (n, d, c) if v is not None]
    if len(given) < 2:
        return Exclusion(number, name, "two of parameters, tokens and FLOPs are needed")
    if any(v <= 0 or v == float("inf") or v != v for v in given):
        bad = next(v for v in given if v <= 0 or v == float("inf") or v != v)
        return Exclusion(number, name, f"parameters, tokens and FLOPs must be positive and finite, got {bad:g}")
    if n is None and c is not None and d is not None:
        n = c / (FLOPS_PER_PARAMETER_TOKEN * d)
    elif d is None and c is not None and n is not None:
        d = c / (FLOPS_PER_PARAMETER_TOKEN * n)
    if n is None or d is None or values["loss"] is None:
        return Exclusion(number, name, "two of parameters, tokens and FLOPs are needed")
    seed = values.get("seed")
    if seed is not None and math.isinf(seed):
        return Exclusion(number, name, f"seed is {seed}")
    return Point(
        num_params=n,
        num_tokens=d,
        loss=values["loss"],
        flops=c,
        seed=None if seed is None or seed != seed else int(seed),
        learning_rate=values.get("learning_rate"),
        label=texts.get("label"),
        run_id=texts.get("run_id"),
        trunk=texts.get("trunk"),
        schedule=texts.get("schedule"),
        unique_tokens=values.get("unique_tokens"),
        compute_budget_flops=values.get("compute_budget_flops"),
        loss_standard_error=values.get("loss_standard_error"),
        row=number,
        global_batch=values.get("global_batch"),
    )


def read_column(path: str | Path, column: str) -> dict[int, Any]:
    """One column of a table as it spells it, by the rows that `load_points` numbers; empty cells are left out.

    Raises:
        DataError: The file cannot be read, or has no such column.
    """
    rows = unfold(_read(Path(path))[0])[0]
    if not any(column in row.cells for row in rows):
        shown = ", ".join(rows[0].cells)
        raise DataError(f"{path}: no column {column!r}; the columns are {shown}")
    return {row.number: row.cells[column] for row in rows if str(row.cells.get(column) or "").strip()}

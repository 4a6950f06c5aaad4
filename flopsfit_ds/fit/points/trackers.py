"""Exports of experiment trackers as people have them: cells that hold mappings, long tables, histories, trackio's file.

- Weights & Biases: the table of runs; or one column `config` and one `summary`, each a mapping, as its public API
  gives them (JSON, or Python's own spelling where a data frame was written).
- TensorBoard: its table of hyperparameters is a plain table; `run, tag, step, value` is a long one.
- trackio: its table of metrics, a row for each step, and its SQLite file, which holds the configurations too.

A history becomes one row for each run: what was last logged when its last held-out loss was.
"""

import ast
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.fit.points.columns import match_columns, normalise

_RUNS = ("run_name", "run", "run_id", "name")
_STEPS = ("step", "global_step")
_TIMES = ("timestamp", "wall_time", "time")
_LONG = {"tag", "value"}
_DEPTH = 6
_MAPPING_TEXT = 100_000
"""Characters of a cell that is read as a mapping."""


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        number: Where it stood, from 1 at the first row of data.
        cells: By column.
    """

    number: int
    cells: dict[str, Any]


class Unfolded(NamedTuple):
    """Rows that stand for one run each.

    Attributes:
        rows: In the order of the file.
        note: What was done to get them; None where nothing was.
    """

    rows: list[Row]
    note: str | None


def unfold(rows: Sequence[dict[str, Any]]) -> Unfolded:
    """One row for each run, from whatever a tracker wrote; a plain table as it is."""
    numbered = [Row(number, _flat(row)) for number, row in enumerate(rows, start=1)]
    names = {normalise(column): column for row in numbered[:1000] for column in row.cells}
    run = next((names[name] for name in _RUNS if name in names), None)
    step = next((names[name] for name in _STEPS if name in names), None)
    timed = any(name in names for name in _TIMES)
    if run is None or step is None:
        return Unfolded(numbered, None)
    if names.keys() >= _LONG:
        return _last_rows(_pivot(numbered, run, step, names["tag"], names["value"]), run, step, len(numbered))
    if timed and len({str(row.cells.get(run)) for row in numbered}) < len(numbered):
        return _last_rows(numbered, run, step, len(numbered))
    return Unfolded(numbered, None)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """The row with mappings in cells taken apart: `config` holding {"lr": 1} becomes `config.lr`."""
    if not any(_is_mapping(cell) for cell in row.values()):
        return row
    found: dict[str, Any] = {}
    for column, cell in row.items():
        _take_apart(str(column), cell, found, 0)
    return found


def _is_mapping(cell: Any) -> bool:
    return isinstance(cell, dict) or (isinstance(cell, str) and cell[:1] == "{" and cell.rstrip()[-1:] == "}")


def _take_apart(column: str, cell: Any, found: dict[str, Any], depth: int) -> None:
    if _is_mapping(cell) and depth < _DEPTH:
        parts = cell if isinstance(cell, dict) else _parsed(cell)
        if isinstance(parts, dict):
            for name, part in parts.items():
                _take_apart(f"{column}.{name}", part, found, depth + 1)
            return
    found[column] = cell


def _parsed(text: str) -> Any:
    """A mapping in JSON, or as Python spells it; None where it is neither."""
    if len(text) > _MAPPING_TEXT:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _pivot(rows: Sequence[Row], run: str, step: str, tag: str, value: str) -> list[Row]:
    """A long table as one row for each run and step, with a column for each tag."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = str(row.cells.get(run)), str(row.cells.get(step))
        held = found.setdefault(key, Row(row.number, {run: row.cells.get(run), step: row.cells.get(step)}))
        held.cells[str(row.cells.get(tag))] = row.cells.get(value)
    return list(found.values())


def _last_rows(rows: Sequence[Row], run: str, step: str, count: int) -> Unfolded:
    """For each run, all that was known when its last held-out loss was logged."""
    header = list(dict.fromkeys(column for row in rows for column in row.cells))
    loss = match_columns(header, {}).get("loss")
    by_run: dict[str, list[Row]] = {}
    for row in rows:
        by_run.setdefault(str(row.cells.get(run)), []).append(row)
    found: list[Row] = []
    for history in by_run.values():
        ordered = sorted(history, key=lambda row: _as_step(row.cells.get(step)))
        measured = [k for k, row in enumerate(ordered) if loss is not None and _said(row.cells.get(loss))]
        last = measured[-1] if measured else len(ordered) - 1
        cells: dict[str, Any] = {}
        for row in ordered[: last + 1]:
            cells |= {column: cell for column, cell in row.cells.items() if _said(cell)}
        found.append(Row(ordered[last].number, cells))
    note = f"{count} rows of histories became {len(found)} runs: what was logged when the last held-out loss was"
    return Unfolded(found, note)


def _as_step(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return -1.0


def _said(cell: Any) -> bool:
    return cell is not None and str(cell).strip() not in ("", "nan", "NaN")


def trackio_rows(path: Path) -> list[dict[str, Any]]:
    """Metrics of a project of trackio with the configuration of their run, from its SQLite file, which is only read.

    Raises:
        DataError: It is no such file.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            columns = {str(column[1]) for column in database.execute("PRAGMA table_info(metrics)")}
            run = "run_id" if "run_id" in columns else "run_name"  # earlier versions know runs by their name
            query = f"SELECT timestamp, run_name, step, metrics, {run} FROM metrics ORDER BY id"
            metrics = database.execute(query).fetchall()
            configs = dict(database.execute(f"SELECT {run}, config FROM configs").fetchall())
    except sqlite3.Error as error:
        raise DataError(
            f"{path}: no project of trackio (tables metrics and configs are needed), and no database of MLflow: {error}"
        ) from error
    return [
        {"timestamp": time, "run_name": name, "step": step, "config": _text(configs.get(key)), "metrics": _text(logged)}
        for time, name, step, logged, key in metrics
    ]


def _text(value: Any) -> str:
    """JSON that SQLite holds as text or as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "{}")

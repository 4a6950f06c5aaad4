"""Runs of a table together with a further column."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.fit.points.columns import read_number, unit_of
from flopsfit_ds.fit.points.points import Exclusion, Point
from flopsfit_ds.fit.points.reading import load_points, read_column
from flopsfit_ds.fit.points.selection import select_points


@dataclass(frozen=True)
class TableWithColumn:
    """Runs that can be used, each with its value.

    Attributes:
        points: The runs.
        values: One for each.
        excluded: Rows left out, with reasons.
    """

    points: tuple[Point, ...]
    values: tuple[float | str, ...]
    excluded: tuple[Exclusion, ...]


def read_with_column(
    path: str | Path, column: str, kind: str, columns: Mapping[str, str] | None = None
) -> TableWithColumn:
    """Runs and a further column of a table, those left out that a law cannot be fitted to.

    Args:
        path: The table.
        column: Its further column, as the table spells it.
        kind: What it holds: names for "family", else numbers, with the unit in brackets of the column's name.
        columns: Quantity -> column, for spellings that are not common.

    Raises:
        DataError: The table cannot be read, or no row has a value.
    """
    table = load_points(path, columns)
    cells = read_column(path, column)
    factor = unit_of(column, "num_params") if kind == "total-params" else 1.0
    excluded = list(table.excluded)
    kept: list[Point] = []
    values: dict[int, float | str] = {}
    for point in table.points:
        row = point.row or 0
        try:
            found = str(cells[row]).strip() if kind == "family" else read_number(cells[row])
        except KeyError:
            excluded.append(Exclusion(row, point.label, f"column {column} is empty"))
            continue
        except ValueError as error:
            excluded.append(Exclusion(row, point.label, f"column {column}: {error}"))
            continue
        if found is None:
            continue
        kept.append(point)
        values[row] = found if isinstance(found, str) else found * factor
    if not kept:
        raise DataError(f"{path}: no row has a value in column {column!r}")
    chosen = select_points(kept)
    used = [values[point.row or 0] for point in chosen.points]
    return TableWithColumn(chosen.points, tuple(used), (*excluded, *chosen.excluded))

"""Tables of the report in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flopsfit_ds.report.table import Table


def print_table(table: Table) -> None:
    """Print a table, numbers to the right; intervals stand in brackets, and reasons for missing values below."""
    lines = [[heading.text for heading in table.headings]]
    if table.groups:
        names = [heading.group for heading in table.headings]
        lines.insert(0, [name if k == 0 or names[k - 1] != name else "" for k, name in enumerate(names)])
    lines += [[cell.text + (f" ({cell.below})" if cell.below else "") for cell in row] for row in table.rows]
    body = lines[1:] if table.groups else lines
    widths = [max(len(line[k]) for line in body) for k in range(len(table.headings))]
    numeric = [heading.numeric for heading in table.headings]
    if table.groups:
        print(_groups(lines[0], widths))
    for line in body:
        cells = [
            text.rjust(w) if right else text.ljust(w) for text, w, right in zip(line, widths, numeric, strict=True)
        ]
        print("  " + "  ".join(cells).rstrip())
    if table.missing:
        print("  not there: " + "; ".join(table.missing))


def _groups(names: Sequence[str], widths: Sequence[int]) -> str:
    """The line above the headings: the name of each group where its first column begins."""
    line = "  "
    for k, name in enumerate(names):
        if name:
            start = 2 + sum(widths[:k]) + 2 * k
            line = line.ljust(start) + name
    return line

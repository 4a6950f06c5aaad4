"""Tables of the report in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flopsfit_ds.cli.prose import say, terminal_width

if TYPE_CHECKING:
    from flopsfit_ds.report.table import Table


def print_table(table: Table) -> None:
    """Print a table, numbers to the right; intervals stand in brackets, and reasons for missing values below."""
    width = terminal_width()
    if width is not None and _columns(table) > width:
        _print_rows(table)
        return
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
    _print_missing(table)


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print plain rows below their headings, the first column to the left; on a narrow terminal, a few lines a row."""
    width, lines = terminal_width(), [headings, *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(headings))]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        for row in rows:
            named = zip(headings[1:], row[1:], strict=True)
            say(f"{row[0]}: " + ", ".join(f"{name} {text}" for name, text in named if text))
        return
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def _print_missing(table: Table) -> None:
    if table.missing:
        say("  not there: " + "; ".join(table.missing))


def _columns(table: Table) -> int:
    """How wide the table is."""
    texts = [[heading.text for heading in table.headings]]
    texts += [[cell.text + (f" ({cell.below})" if cell.below else "") for cell in row] for row in table.rows]
    return sum(max(len(line[k]) for line in texts) + 2 for k in range(len(table.headings)))


def _print_rows(table: Table) -> None:
    """A table wider than the terminal: each row as a few lines, with the name of each value before it."""
    for row in table.rows:
        parts: dict[str, list[str]] = {}
        for heading, cell in zip(table.headings, row, strict=True):
            text = cell.text + (f" ({cell.below})" if cell.below else "")
            if not cell.missing:
                parts.setdefault(heading.group, []).append(f"{heading.text} {text}")
        for number, (group, values) in enumerate(parts.items()):
            say(f"{'    ' if number else '  '}{group + ': ' if group else ''}{', '.join(values)}")
    _print_missing(table)


def _groups(names: Sequence[str], widths: Sequence[int]) -> str:
    """The line above the headings: the name of each group where its first column begins."""
    line = "  "
    for k, name in enumerate(names):
        if name:
            start = 2 + sum(widths[:k]) + 2 * k
            line = line.ljust(start) + name
    return line

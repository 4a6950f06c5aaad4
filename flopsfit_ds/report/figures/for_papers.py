"""Figures and tables as papers take them: SVG and PNG, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from flopsfit_ds.base.storage import atomic_write
from flopsfit_ds.report.figures.svg import Svg
from flopsfit_ds.report.table import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def write_figures(folder: Path, figures: Sequence[Svg]) -> None:
    """Each figure as NAME.svg and NAME.png."""
    for figure in figures:
        atomic_write(folder / f"{figure.name}.svg", figure.standalone, durable=False)
        atomic_write(folder / f"{figure.name}.png", figure.png, durable=False)


def write_tables(folder: Path, tables: dict[str, Table]) -> None:
    """Each table as NAME.tex (a `tabular` of booktabs) and NAME.csv."""
    for name, table in tables.items():
        atomic_write(folder / f"{name}.tex", as_latex(table), durable=False)
        atomic_write(folder / f"{name}.csv", as_csv(table), durable=False)


def as_latex(table: Table) -> str:
    """A `tabular` with the rules of booktabs; a second line of a cell stands in brackets."""
    columns = "".join("r" if heading.numeric else "l" for heading in table.headings)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    if table.groups:
        parts = [rf"\multicolumn{{{width}}}{{c}}{{{_latex(name)}}}" for name, width in table.groups]
        lines.append(" & ".join(parts) + r" \\")
    lines += [" & ".join(_latex(heading.text) for heading in table.headings) + r" \\", r"\midrule"]
    for row in table.rows:
        cells = (cell.text + (f" ({cell.below})" if cell.below else "") for cell in row)
        lines.append(" & ".join(_latex(cell) for cell in cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex(text: str) -> str:
    return "".join(_LATEX.get(each, each) for each in text)


def as_csv(table: Table) -> str:
    """A row a row; headings carry the name of their group, and a second line of a cell has a column of its own."""
    below = [any(row[k].below for row in table.rows) for k in range(len(table.headings))]
    names: list[str] = []
    for heading, more in zip(table.headings, below, strict=True):
        name = f"{heading.group}: {heading.text}" if heading.group else heading.text
        names += [name, f"{name}, interval"] if more else [name]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in table.rows:
        cells: list[str] = []
        for cell, more in zip(row, below, strict=True):
            cells += ["" if cell.missing else cell.text, *([cell.below or ""] if more else [])]
        writer.writerow(cells)
    return text.getvalue()

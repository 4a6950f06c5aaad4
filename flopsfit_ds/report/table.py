"""A table ready to be shown, on the page or in a terminal; what is not known is a dash with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flopsfit_ds.base.text import html_table
from flopsfit_ds.fit.solve.intervals import Interval

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What it shows; a dash where there is no value.
        hint: Shown when pointed at: more digits, or why there is no value.
        missing: Whether there is no value.
        link: Where it leads, relative to the page.
        tone: `bad`, `soft` or `target`, for emphasis.
        below: A second line, such as the value's interval.
    """

    text: str
    hint: str | None = None
    missing: bool = False
    link: str | None = None
    tone: str | None = None
    below: str | None = None


@dataclass(frozen=True)
class Heading:
    """Head of one column.

    Attributes:
        text: Name.
        group: Name of the group it stands in, such as a quantity that is planned and observed.
        numeric: Whether its cells align to the right.
    """

    text: str
    group: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table, ready to be shown.

    Attributes:
        headings: Of the columns.
        rows: Cells of each row.
    """

    headings: tuple[Heading, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __str__(self) -> str:
        """As text: a line a row, numbers to the right, the second line of a cell in brackets."""
        lines = [list(self._names()), *(list(self._texts(row)) for row in self.rows)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(self.headings))]
        sides = ["rjust" if heading.numeric else "ljust" for heading in self.headings]
        return "\n".join(
            "  ".join(
                getattr(text, side)(width) for text, side, width in zip(line, sides, widths, strict=True)
            ).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(self._names(), (self._texts(row) for row in self.rows))

    def _names(self) -> list[str]:
        return [f"{heading.group}: {heading.text}" if heading.group else heading.text for heading in self.headings]

    def _texts(self, row: Sequence[Cell]) -> list[str]:
        return [cell.text + (f" ({cell.below})" if cell.below else "") for cell in row]

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Groups of columns with their widths; empty where there are none."""
        if not any(heading.group for heading in self.headings):
            return ()
        found: list[tuple[str, int]] = []
        for heading in self.headings:
            if found and heading.group and found[-1][0] == heading.group:
                found[-1] = (heading.group, found[-1][1] + 1)
            else:
                found.append((heading.group, 1))
        return tuple(found)

    @property
    def missing(self) -> tuple[str, ...]:
        """Distinct reasons for missing values, for paper and for fingers, which cannot point."""
        hints = (cell.hint for row in self.rows for cell in row if cell.missing and cell.hint)
        return tuple(dict.fromkeys(hints))


def absent(reason: str) -> Cell:
    """A missing value."""
    return Cell(DASH, reason, missing=True)


def span(interval: Interval | None, text: Callable[[float], str]) -> Cell:
    """An interval; an end that the data do not bound says so."""
    if interval is None:
        return absent("no resamples were fitted, so there is no interval")
    low, high = math.isfinite(interval.low), math.isfinite(interval.high)
    if low and high:
        return Cell(f"{text(interval.low)} to {text(interval.high)}")
    if not low and not high:
        return absent("the points set no bound")
    return Cell(
        f"above {text(interval.low)}" if low else f"below {text(interval.high)}", "the points set no other bound"
    )

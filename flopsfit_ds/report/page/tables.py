"""Rows of the report's tables, formatted; what was not measured is a dash with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from flopsfit_ds.base.units import format_bytes, format_count, format_flops, format_seconds
from flopsfit_ds.fit.forecast.isoflop import BudgetMinimum
from flopsfit_ds.fit.forecast.optimum import Optimum
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.fit.solve.intervals import Interval
from flopsfit_ds.records import Attempt, Observed, RunRecord
from flopsfit_ds.report.findings import Findings
from flopsfit_ds.report.values import log_error_text, loss_text, number_text

DASH = "\N{EN DASH}"
_NEVER_TRAINED = "the run never got as far as a measurement"


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


def run_link(record: RunRecord) -> str:
    """Folder of a run, from the report's folder."""
    return f"../runs/{quote(record.run_id, safe='')}/"


def optima_table(findings: Findings) -> Table:
    """N*, D* and loss at each budget: by the budget's own parabola, and by the law."""
    headings = [
        Heading("FLOPs"),
        Heading("points"),
        Heading("N*", "isoFLOP minimum"),
        Heading("std. error", "isoFLOP minimum"),
        Heading("D*", "isoFLOP minimum"),
        Heading("loss", "isoFLOP minimum"),
    ]
    optima = findings.fit.optima if findings.fit is not None else ()
    if optima and findings.fit is not None:
        group = f"law, with {findings.fit.level:.0%} intervals"
        headings += [Heading(name, group) for name in ("N*", "D*", "tokens per parameter", "loss")]
        headings.append(Heading("N within 0.1% of loss", group))
    rows: list[tuple[Cell, ...]] = []
    left = list(optima)
    for budget in findings.isoflop.budgets:
        near = next((o for o in left if math.isclose(o.compute, budget.compute_flops, rel_tol=1e-6)), None)
        if near is not None:
            left.remove(near)
        rows.append((*_budget_cells(budget), *_optimum_cells(near, bool(optima))))
    for optimum in left:
        is_target = optimum is findings.target
        first = Cell(
            format_flops(optimum.compute), "the target" if is_target else None, tone="target" if is_target else None
        )
        why = "the target: no run was trained at this compute" if is_target else "no parabola at this compute"
        rows.append((first, *(absent(why) for _ in range(5)), *_optimum_cells(optimum, True)))
    return Table(tuple(headings), tuple(rows))


def _budget_cells(budget: BudgetMinimum) -> tuple[Cell, ...]:
    head = (Cell(format_flops(budget.compute_flops)), Cell(str(budget.num_points)))
    if budget.num_params is None or budget.num_tokens is None or budget.loss is None:
        refused = absent(budget.refused or "no minimum")
        return (*head, *(refused for _ in range(4)))
    error = budget.log_num_params_standard_error
    return (
        *head,
        Cell(format_count(budget.num_params)),
        absent("no spare points to judge the scatter by") if error is None else Cell(log_error_text(error)),
        Cell(format_count(budget.num_tokens)),
        Cell(loss_text(budget.loss)),
    )


def _optimum_cells(optimum: Optimum | None, has_law: bool) -> tuple[Cell, ...]:
    if not has_law:
        return ()
    if optimum is None:
        return tuple(absent("the law was not asked at this budget") for _ in range(5))
    cells: list[Cell] = []
    for name, text in (
        ("num_params", format_count),
        ("num_tokens", format_count),
        ("tokens_per_parameter", lambda v: f"{v:.3g}"),
        ("loss", loss_text),
    ):
        interval = span(optimum.intervals.get(name), text)
        cells.append(Cell(text(getattr(optimum, name)), interval.hint, below=interval.text))
    low, high = optimum.flat_band
    return (*cells, Cell(f"{format_count(low)} to {format_count(high)}"))


_SYMBOLS = (
    ("loss_floor", "E", "loss floor"),
    ("A", "A", "amplitude of the size term"),
    ("B", "B", "amplitude of the data term"),
    ("alpha", "\N{GREEK SMALL LETTER ALPHA}", "exponent of the size term"),
    ("beta", "\N{GREEK SMALL LETTER BETA}", "exponent of the data term"),
    ("a", "a", "N* grows as C to this power"),
    ("b", "b", "D* grows as C to this power"),
)


def law_table(fit: ScalingFit) -> Table:
    """Parameters of the law with standard errors and intervals."""
    rows: list[tuple[Cell, ...]] = []
    own = tuple((name, name, "of this form only") for name in fit.law.own)
    for name, symbol, meaning in (*_SYMBOLS, *own):
        value = fit.law.own[name] if name in fit.law.own else getattr(fit.law, name)
        error = fit.standard_errors.get(name)
        if error is None:
            shown = absent("no resamples were fitted, so there is no standard error")
        elif not math.isfinite(error):
            shown = absent("the resamples do not bound it")
        else:
            shown = Cell(number_text(error, 3))
        rows.append(
            (Cell(symbol), Cell(meaning), Cell(number_text(value)), shown, span(fit.intervals.get(name), number_text))
        )
    headings = (
        Heading("", numeric=False),
        Heading("meaning", numeric=False),
        Heading("value"),
        Heading("standard error"),
        Heading(f"{fit.level:.0%} interval"),
    )
    return Table(headings, tuple(rows))


_PAIRS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("parameters", "num_params_total", format_count),
    ("tokens", "num_tokens", format_count),
    ("FLOPs", "flops", format_flops),
)


def runs_table(findings: Findings) -> Table:
    """Every run that ended, planned beside observed."""
    records = findings.records
    extra = _varying(records)
    outside = {id(run.record): run.reason for run in findings.excluded if run.record is not None}
    headings = [Heading("run", numeric=False), Heading("status", numeric=False), Heading("loss"), Heading("± s.e.")]
    headings += [Heading(name) for name, _ in extra]
    for name in ("parameters", "tokens", "FLOPs", "device memory"):
        headings += [Heading("planned", name), Heading("observed", name)]
    headings += [Heading("error", "device memory"), Heading("host memory")]
    for name in ("time", "ZeRO stage", "devices"):
        headings += [Heading("planned", name), Heading("observed", name)]
    headings += [Heading("tokens/s"), Heading("MFU"), Heading("attempts", numeric=False)]
    rows = [_run_row(record, extra, outside.get(id(record))) for record in records]
    return Table(tuple(headings), tuple(rows))


def _varying(records: Sequence[RunRecord]) -> list[tuple[str, Callable[[RunRecord], str]]]:
    """Columns that are worth their place only where runs differ in them."""
    columns: list[tuple[str, Callable[[RunRecord], str]]] = [
        ("learning rate", lambda r: f"{r.learning_rate:.3g}"),
        ("seed", lambda r: str(r.seed)),
        ("precision", lambda r: r.precision),
    ]
    return [(name, value) for name, value in columns if len({value(record) for record in records}) > 1]


def _run_row(
    record: RunRecord, extra: Sequence[tuple[str, Callable[[RunRecord], str]]], outside: str | None
) -> tuple[Cell, ...]:
    why = f"{record.status}: {record.reason or _NEVER_TRAINED}"
    model = ", ".join(f"{key} {value}" for key, value in record.model.items())
    status = record.status
    tone = None if status == "completed" else "bad"
    if outside is not None and tone is None:
        status, tone = "left out", "soft"
    error = record.loss_standard_error
    cells = [
        Cell(record.label or record.run_id, f"{record.run_id}: {model}", link=run_link(record)),
        Cell(status, outside or record.reason, tone=tone),
        absent(why) if record.loss is None else Cell(loss_text(record.loss)),
        absent(why if record.loss is None else "not measured") if error is None else Cell(f"{error:.4f}"),
    ]
    cells += [Cell(value(record)) for _, value in extra]
    return (*cells, *_pairs(record, why), *_attempts(record.attempts))


def _pairs(record: RunRecord, why: str) -> list[Cell]:
    planned, seen = record.planned, record.observed
    cells: list[Cell] = []
    for _, name, text in _PAIRS:
        value = getattr(planned, name)
        cells.append(Cell(text(value), f"{value:,.0f}", tone="soft"))
        cells.append(absent(why) if seen is None else Cell(text(getattr(seen, name)), f"{getattr(seen, name):,.0f}"))
    cells.append(Cell(format_bytes(planned.peak_memory_bytes), tone="soft"))
    cells += [_measured(seen, "peak_memory_bytes", format_bytes, why), _memory_error(record, why)]
    cells.append(_measured(seen, "peak_host_memory_bytes", format_bytes, why))
    cells.append(Cell(format_seconds(planned.seconds), tone="soft"))
    cells.append(_measured(seen, "seconds", format_seconds, why))
    for name in ("zero_stage", "world_size"):
        wanted = getattr(planned, name)
        cells.append(Cell(str(wanted), tone="soft"))
        got = _measured(seen, name, str, why)
        cells.append(Cell(got.text, "not as planned", tone="bad") if seen and getattr(seen, name) != wanted else got)
    cells.append(_measured(seen, "tokens_per_second", format_count, why))
    cells.append(_measured(seen, "model_flops_utilisation", lambda share: f"{share:.1%}", why))
    return cells


def _measured(seen: Observed | None, name: str, text: Callable, why: str) -> Cell:
    if seen is None:
        return absent(why)
    value = getattr(seen, name)
    if value is None:
        return absent(seen.missing.get(name, f"{name} was not measured"))
    return Cell(text(value))


def _memory_error(record: RunRecord, why: str) -> Cell:
    """How far the prediction was off, of what was observed; too low a prediction is the dangerous side."""
    seen = record.observed
    if seen is None:
        return absent(why)
    if not seen.peak_memory_bytes:
        return absent(seen.missing.get("peak_memory_bytes", "peak_memory_bytes was not measured"))
    share = record.planned.peak_memory_bytes / seen.peak_memory_bytes - 1.0
    return Cell(f"{share:+.1%}", "predicted over observed", tone="bad" if share < -0.05 else None)


def _attempts(attempts: Sequence[Attempt]) -> tuple[Cell]:
    if not attempts:
        return (absent("no attempt is on record"),)
    lines = [
        f"{a.number}: {a.outcome} on {', '.join(a.slots)} after {format_seconds(a.seconds)}"
        + (f" ({a.reason})" if a.reason else "")
        for a in attempts
    ]
    bad = [a.outcome for a in attempts if a.outcome != "completed"]
    text = str(len(attempts)) + (f" ({', '.join(bad)})" if bad and len(attempts) > 1 else "")
    return (Cell(text, "\n".join(lines)),)


def excluded_table(findings: Findings) -> Table:
    """Every run outside the fit, with its reason."""
    rows = tuple(
        (Cell(run.name, link=None if run.record is None else run_link(run.record)), Cell(run.reason))
        for run in findings.excluded
    )
    return Table((Heading("run", numeric=False), Heading("why it is not in the fit", numeric=False)), rows)

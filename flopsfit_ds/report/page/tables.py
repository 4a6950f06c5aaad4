"""Tables of the runs, planned beside observed, and of what is outside the fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flopsfit_ds.base.units import format_bytes, format_count, format_flops, format_seconds
from flopsfit_ds.records import Attempt, Observed, RunRecord
from flopsfit_ds.report.findings import Findings
from flopsfit_ds.report.table import Cell, Heading, Table, absent
from flopsfit_ds.report.values import loss_text

_NEVER_TRAINED = "the run never got as far as a measurement"


_PAIRS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("parameters", "num_params_total", format_count),
    ("tokens", "num_tokens", format_count),
    ("FLOPs", "flops", format_flops),
)


def runs_table(findings: Findings) -> Table:
    """Every run that ended: its loss, and its size, tokens and FLOPs, planned beside observed."""
    records = findings.records
    extra = _varying(records)
    outside = {id(run.record): run.reason for run in findings.excluded if run.record is not None}
    headings = [Heading("run", numeric=False), Heading("status", numeric=False), Heading("loss"), Heading("± s.e.")]
    headings += [Heading(name) for name, _ in extra]
    for name, _, _ in _PAIRS:
        headings += [Heading("planned", name), Heading("observed", name)]
    rows = [_run_row(record, extra, outside.get(id(record))) for record in records]
    return Table(tuple(headings), tuple(rows))


def machines_table(findings: Findings) -> Table:
    """Every run that ended: memory, time, layout and speed, planned beside observed."""
    headings = [
        Heading("run", numeric=False),
        Heading("planned", "device memory"),
        Heading("observed", "device memory"),
    ]
    headings += [Heading("error", "device memory"), Heading("host memory")]
    for name in ("time", "ZeRO stage", "devices"):
        headings += [Heading("planned", name), Heading("observed", name)]
    headings += [Heading("tokens/s"), Heading("MFU"), Heading("waited"), Heading("attempts", numeric=False)]
    rows = [
        (_name(record), *_machine(record, _why(record)), *_attempts(record.attempts)) for record in findings.records
    ]
    return Table(tuple(headings), tuple(rows))


def points_table(findings: Findings) -> Table:
    """Every point of a table of runs that no sweep here has trained."""
    headings = [Heading("run", numeric=False), *(Heading(name) for name in ("parameters", "tokens", "FLOPs", "loss"))]
    if findings.fit is not None:
        headings.append(Heading("law over measured"))
    rows: list[tuple[Cell, ...]] = []
    for number, point in enumerate(findings.points, start=1):
        cells = [
            Cell(point.label or point.run_id or f"row {point.row or number}"),
            Cell(format_count(point.num_params), f"{point.num_params:,.0f}"),
            Cell(format_count(point.num_tokens), f"{point.num_tokens:,.0f}"),
            Cell(format_flops(point.compute_flops)),
            Cell(loss_text(point.loss)),
        ]
        if findings.fit is not None:
            cells.append(Cell(f"{math.expm1(findings.fit.residuals[number - 1]):+.2%}"))
        rows.append(tuple(cells))
    return Table(tuple(headings), tuple(rows))


def _why(record: RunRecord) -> str:
    return f"{record.status}: {record.reason or _NEVER_TRAINED}"


def _name(record: RunRecord) -> Cell:
    model = ", ".join(f"{key} {value}" for key, value in record.model.items())
    return Cell(record.label or record.run_id, f"{record.run_id}: {model}")


def _varying(records: Sequence[RunRecord]) -> list[tuple[str, Callable[[RunRecord], str]]]:
    """Columns that are worth their place only where runs differ in them."""
    columns: list[tuple[str, Callable[[RunRecord], str]]] = [
        ("learning rate", lambda r: f"{r.learning_rate:.3g}"),
        ("seed", lambda r: str(r.seed)),
        ("precision", lambda r: r.precision),
        ("bits a byte", lambda r: "" if r.bits_per_byte is None else f"{r.bits_per_byte:.4f}"),
    ]
    for each in sorted({name for record in records for name in record.heldout}):
        columns.append((f"loss on {each}", lambda r, name=each: _set_loss(r, name)))
    return [(name, value) for name, value in columns if len({value(record) for record in records}) > 1]


def _set_loss(record: RunRecord, name: str) -> str:
    loss = record.heldout[name].loss if name in record.heldout else None
    return "" if loss is None else loss_text(loss)


def _run_row(
    record: RunRecord, extra: Sequence[tuple[str, Callable[[RunRecord], str]]], outside: str | None
) -> tuple[Cell, ...]:
    why = _why(record)
    status = record.status
    tone = None if status == "completed" else "bad"
    if outside is not None and tone is None:
        status, tone = "left out", "soft"
    error = record.loss_standard_error
    cells = [
        _name(record),
        Cell(status, outside or record.reason, tone=tone),
        absent(why) if record.loss is None else Cell(loss_text(record.loss)),
        absent(why if record.loss is None else "not measured") if error is None else Cell(f"{error:.4f}"),
    ]
    cells += [Cell(value(record)) for _, value in extra]
    return (*cells, *_pairs(record, why))


def _pairs(record: RunRecord, why: str) -> list[Cell]:
    planned, seen = record.planned, record.observed
    cells: list[Cell] = []
    for _, name, text in _PAIRS:
        value = getattr(planned, name)
        cells.append(Cell(text(value), f"{value:,.0f}", tone="soft"))
        cells.append(absent(why) if seen is None else Cell(text(getattr(seen, name)), f"{getattr(seen, name):,.0f}"))
    return cells


def _machine(record: RunRecord, why: str) -> list[Cell]:
    planned, seen = record.planned, record.observed
    cells = [Cell(format_bytes(planned.peak_memory_bytes), tone="soft")]
    cells += [_measured(seen, "peak_memory_bytes", format_bytes, why), _memory_error(record, why)]
    cells.append(_measured(seen, "peak_host_memory_bytes", format_bytes, why))
    never = "no run on this machine had told what such runs take"
    cells.append(absent(never) if planned.seconds is None else Cell(format_seconds(planned.seconds), tone="soft"))
    cells.append(_measured(seen, "seconds", format_seconds, why))
    for name in ("zero_stage", "world_size"):
        wanted = getattr(planned, name)
        cells.append(Cell(str(wanted), tone="soft"))
        got = _measured(seen, name, str, why)
        cells.append(Cell(got.text, "not as planned", tone="bad") if seen and getattr(seen, name) != wanted else got)
    cells.append(_measured(seen, "tokens_per_second", format_count, why))
    cells.append(_measured(seen, "model_flops_utilisation", lambda share: f"{share:.1%}", why))
    cells.append(_measured(seen, "waited_share", lambda share: f"{share:.1%}", why))
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
        (Cell(run.name, None if run.record is None else run.record.run_id), Cell(run.reason))
        for run in findings.excluded
    )
    return Table((Heading("run", numeric=False), Heading("why it is not in the fit", numeric=False)), rows)

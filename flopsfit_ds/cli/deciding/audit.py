"""`audit`: the checklist of good practice for a table of runs."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopsfit_ds.cli.options import AsJson, given_files, quantity, require_writable, write_text
from flopsfit_ds.cli.prose import say, terminal_width

if TYPE_CHECKING:
    from flopsfit_ds.decide.audit.checklist import AuditReport

_MARKS = {"passed": "passed ", "failed": "FAILED ", "unknown": "unknown"}
_WIDEST = 118  # columns: a longer line is hard to read on


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("audit")(audit_command)


def audit_command(
    data: Annotated[
        list[Path],
        typer.Argument(help="Tables (CSV, JSONL, Parquet, exports of trackers; - is standard input), sweeps, fits."),
    ],
    target: Annotated[
        str | None,
        typer.Option(help="FLOPs of the run to plan; else the sweep's own, or ten times the largest."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Audit runs before a law is trusted: grid, counting, tuning, outliers, back-test; each with its remedy.

    Example: flopsfit-ds audit runs.csv --target 1e24
    """
    from flopsfit_ds.decide.audit.checklist import audit_runs
    from flopsfit_ds.decide.sources import plan_beside, read_sources

    require_writable(html)
    with given_files(data) as files:
        source = read_sources(files)
        plan = plan_beside(files[0]) if len(files) == 1 else None
    own = None if plan is None else plan.spec.fit.target_compute
    report = audit_runs(source, own if target is None else quantity(target, "--target"))
    if html is not None:
        from flopsfit_ds.report.deciding.audit_page import render_audit

        write_text(html, render_audit(report))
    if as_json:
        print(json.dumps(report.to_json_dict(), allow_nan=False))
    else:
        _print_audit(report)


def _print_audit(report: AuditReport) -> None:
    width = min(terminal_width() or _WIDEST, _WIDEST)
    whole = (
        f"{report.source}: {report.num_points} runs; {report.count('passed')} checks passed, {report.count('failed')} "
        f"failed, {report.count('unknown')} cannot be known"
    )
    print(textwrap.fill(whole, width))
    for check in report.checks:
        say(f"{_MARKS[check.status]}  {check.title}")
        for text in (check.found, None if check.remedy is None else f"-> {check.remedy}"):
            if text is not None:
                print(textwrap.fill(text, width, initial_indent=9 * " ", subsequent_indent=9 * " "))
    for gone in report.excluded:
        where = f"row {gone.row}" if gone.row is not None else gone.name
        say(f"read: {gone.reason}" if gone.of_source else f"left out: {where}: {gone.reason}")

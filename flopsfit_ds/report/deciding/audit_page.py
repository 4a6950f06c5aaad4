"""The page of an audit: one self-contained HTML document."""

from __future__ import annotations

from flopsfit_ds.decide.audit.checklist import AuditReport
from flopsfit_ds.report.deciding.shell import render
from flopsfit_ds.report.table import Cell, Heading, Table

_TONES = {"passed": None, "failed": "bad", "unknown": "soft"}


def render_audit(report: AuditReport) -> str:
    """The whole page; it runs no script and needs no network."""
    return render(
        "audit.html",
        report=report,
        words={"passed": "passed", "failed": "failed", "unknown": "cannot be known"},
        tones=_TONES,
        excluded=_excluded(report),
    )


def _excluded(report: AuditReport) -> Table:
    rows = tuple(
        (Cell(f"row {gone.row}" if gone.row is not None else gone.name or "-"), Cell(gone.reason))
        for gone in report.excluded
    )
    return Table((Heading("run", numeric=False), Heading("why it is left out", numeric=False)), rows)

"""The page of an audit: one self-contained HTML document."""

from __future__ import annotations

from importlib import resources

from flopsfit_ds.decide.audit.checklist import AuditReport
from flopsfit_ds.report.figures.palette import FIXED, css_variables
from flopsfit_ds.report.table import Cell, Heading, Table

_TONES = {"passed": None, "failed": "bad", "unknown": "soft"}


def render_audit(report: AuditReport) -> str:
    """The whole page; it runs no script and needs no network."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    files = resources.files("flopsfit_ds.report.page")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files.joinpath("audit.html").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        style=Markup(files.joinpath("page.css").read_text(encoding="utf-8")),
        light=Markup(css_variables(FIXED, "light")),
        dark=Markup(css_variables(FIXED, "dark")),
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

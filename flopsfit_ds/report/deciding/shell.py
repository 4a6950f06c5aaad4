"""What pages of decisions have in common: one file, the report's style, no script, no network."""

from __future__ import annotations

from importlib import resources
from typing import Any

from flopsfit_ds.report.figures.palette import FIXED, css_variables


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder; text is escaped.

    Args:
        template: Name of its file.
        values: What it shows.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    files = resources.files("flopsfit_ds.report")
    style = files.joinpath("page").joinpath("page.css").read_text(encoding="utf-8")
    text = files.joinpath("deciding").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(
        style=Markup(style),
        light=Markup(css_variables(FIXED, "light")),
        dark=Markup(css_variables(FIXED, "dark")),
        **values,
    )

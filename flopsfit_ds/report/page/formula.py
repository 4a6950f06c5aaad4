"""Formulas of laws as a page shows them: exponents raised, Greek letters, and with the fitted values put in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flopsfit_ds.fit.result import LawSummary
from flopsfit_ds.report.values import number_text

if TYPE_CHECKING:
    from markupsafe import Markup

_GREEK = {
    "alpha": "\N{GREEK SMALL LETTER ALPHA}",
    "beta": "\N{GREEK SMALL LETTER BETA}",
    "gamma": "\N{GREEK SMALL LETTER GAMMA}",
    "eta": "\N{GREEK SMALL LETTER ETA}",
}
_NAME = re.compile(r"[A-Za-z]+")
_EXPONENT = re.compile(r"\^(\([^()]*\)|-?[\w.]+)")
_VARIABLES = frozenset({"L", "N", "D", "U", "M", "exp", "for", "unique", "tokens"})


def typeset(formula: str) -> Markup:
    """HTML of a formula such as `L = E + A/N^alpha`."""
    from markupsafe import Markup, escape

    greek = _NAME.sub(lambda match: _GREEK.get(match.group(), match.group()), str(escape(formula)))
    raised = _EXPONENT.sub(lambda match: f"<sup>{match.group(1)}</sup>", greek)
    return Markup(raised.replace("*", "\N{MIDDLE DOT}").replace("-", "\N{MINUS SIGN}").replace("&#39;", "\N{PRIME}"))


def in_numbers(law: LawSummary) -> str | None:
    """The formula with its parameters as numbers; None where it has others than the summary names."""
    values = {"E": law.loss_floor, "A": law.A, "B": law.B, "alpha": law.alpha, "beta": law.beta, **law.own}
    names = set(_NAME.findall(law.formula)) - _VARIABLES
    if not names <= set(values):
        return None
    return _NAME.sub(lambda m: number_text(values[m.group()]) if m.group() in values else m.group(), law.formula)

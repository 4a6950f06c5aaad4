"""The page of a comparison: the answer, the figure, the multipliers and the pairs, in one file."""

from __future__ import annotations

import math

from flopsfit_ds.base.units import format_count, format_flops, format_ratio
from flopsfit_ds.decide.comparing.compare import Comparison, Multiplier
from flopsfit_ds.decide.comparing.words import ends, times
from flopsfit_ds.report.deciding.shell import render
from flopsfit_ds.report.figures.compare_figure import compare_figure
from flopsfit_ds.report.figures.svg import rendered
from flopsfit_ds.report.table import DASH, Cell, Heading, Table

_BEYOND = 1.01
"""Times the largest compute of both: less is the rounding of budgets to whole batches."""


def render_comparison(found: Comparison) -> str:
    """The whole page; it runs no script and needs no network."""
    from markupsafe import Markup

    (drawn,), _ = rendered(lambda: [compare_figure(found)])
    return render(
        "compare.html",
        found=found,
        answer=_answer(found),
        shared=tuple(format_flops(end) for end in found.shared),
        figure=Markup(drawn.inline),
        multipliers=_multipliers(found),
        pairs=_pairs(found),
        matched=_matched(found),
        crossing=_crossing(found),
    )


def _answer(found: Comparison) -> str:
    """What a reader who reads one line should know."""
    within = [point for point in found.multipliers if point.beyond <= _BEYOND]
    at = within[-1] if within else found.multipliers[0]
    if not math.isfinite(at.value):
        return f"At {format_flops(at.compute)} FLOPs A never reaches the loss of B ({ends(at.interval)} its compute)."
    needed = f"A needs {times(at.value)} the compute of B to be as good"
    return f"{needed} at {format_flops(at.compute)} FLOPs ({ends(at.interval)})."


def _multipliers(found: Comparison) -> Table:
    headings = (
        Heading("FLOPs of B"),
        Heading("compute of A, over it"),
        Heading(f"{found.level:.0%} interval"),
        Heading("where", numeric=False),
    )
    return Table(headings, tuple(_row(point) for point in found.multipliers))


def _row(point: Multiplier) -> tuple[Cell, ...]:
    beyond = point.beyond > _BEYOND
    where = f"{format_ratio(point.beyond)} times beyond the runs" if beyond else "within the runs"
    tone = "soft" if beyond else None
    return (
        Cell(format_flops(point.compute)),
        Cell(times(point.value)),
        Cell(ends(point.interval)),
        Cell(where, tone=tone),
    )


def _pairs(found: Comparison) -> Table:
    headings = ("N", "D", "FLOPs of A", "B's loss against A's", "compute of A, over B's")
    pairs = () if found.matched is None else found.matched.pairs
    rows = tuple(
        (
            Cell(format_count(pair.num_params)),
            Cell(format_count(pair.num_tokens)),
            Cell(format_flops(pair.compute)),
            Cell(f"{math.expm1(pair.log_loss_change):+.2%}"),
            Cell(times(pair.multiplier) if math.isfinite(pair.multiplier) else DASH),
        )
        for pair in pairs
    )
    return Table(tuple(Heading(name) for name in headings), rows)


def _matched(found: Comparison) -> str:
    if found.matched is None:
        return "No two runs have the same size and tokens, so nothing but the laws can tell."
    told = found.matched
    interval = f" ({ends(told.interval)})" if told.interval is not None else ", too few for an interval"
    return (
        f"{len(told.pairs)} pairs of runs of the same size and tokens give {times(told.multiplier)}{interval}; B's "
        f"losses differ by {math.expm1(told.log_loss_change):+.2%} on average."
    )


def _crossing(found: Comparison) -> str:
    if found.crossing is None:
        return "The two laws do not cross where both were run."
    cross = found.crossing
    return (
        f"The laws cross at {format_flops(cross.compute)} FLOPs ({format_flops(cross.interval.low)} to "
        f"{format_flops(cross.interval.high)}); {cross.share:.0%} of resamples cross within the runs."
    )

"""Registered forecasts and what came: each in its intervals, and how often intervals held."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flopsfit_ds.base.units import format_flops
from flopsfit_ds.decide.forecasts.scoring import ScoreTable
from flopsfit_ds.report.figures.axes import mark, name_axes, new_drawing
from flopsfit_ds.report.figures.palette import BAND, INK, LAW, MUTED
from flopsfit_ds.report.figures.svg import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from flopsfit_ds.decide.forecasts.scoring import Scored

_MOST_NAMED = 30  # labels that do not overlap


def score_figure(table: ScoreTable) -> Drawing:
    """Left: the measured loss over the forecast, in its intervals. Right: share of intervals that held, by level."""
    height = min(14.0, max(4.0, 1.6 + 0.24 * len(table.rows)))
    drawing, (each, together) = new_drawing("scores", "Registered forecasts and measured losses", 2, (), height)
    for place, row in enumerate(table.rows):
        _draw_row(drawing, each, place, row)
    each.set_ylim(len(table.rows) - 0.4, -0.6)
    named = len(table.rows) <= _MOST_NAMED
    each.set_yticks(range(len(table.rows)) if named else [], [row.name for row in table.rows] if named else [])
    each.axvline(0.0, color=MUTED.light, linewidth=0.8)
    name_axes(each, "Measured loss over the forecast, per cent", "Forecast, in the order of registration")
    _draw_coverage(drawing, together, table)
    return drawing


def _draw_row(drawing: Drawing, ax: Axes, place: int, row: Scored) -> None:
    """Bars of all intervals about the centre, the narrower the darker, and the measured loss."""
    for hit in row.hits:
        ax.barh(place, 100 * hit.width, left=100 * hit.low, height=0.62, color=BAND.light, alpha=0.16, linewidth=0)
    inside = row.hits[-1].inside
    tip = (
        f"{row.name}, {format_flops(row.compute)} FLOPs: forecast {row.predicted:.4f}, measured {row.measured:.4f} "
        f"({row.error:+.2%})"
    )
    ax.update_datalim([(100 * row.error, place)])
    mark(drawing, ax, 100 * row.error, place, tip, LAW if inside else INK, "o" if inside else "X")


def _draw_coverage(drawing: Drawing, ax: Axes, table: ScoreTable) -> None:
    """Share that held against the level, with what would be no surprise."""
    ax.plot([0, 100], [0, 100], color=MUTED.light, linewidth=0.8)
    for level in table.levels:
        x = 100 * level.level
        low, high = (100 * count / level.count for count in level.expected)
        ax.plot([x, x], [low, high], color=BAND.light, alpha=0.4, linewidth=6, zorder=2)
        tip = f"{level.level:.0%} intervals: {level.inside} of {level.count} held, {level.verdict}"
        mark(drawing, ax, x, 100 * level.inside / level.count, tip, LAW)
    ax.set_xlim(40, 101)
    ax.set_ylim(-2, 103)
    name_axes(ax, "Level of the interval, per cent", "Held, per cent; bars: what chance allows")

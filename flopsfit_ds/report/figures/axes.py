"""Axes, ticks and labels that all figures share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.report.figures.palette import FIXED, GRID, INK, MUTED, PAPER, Tone
from flopsfit_ds.report.figures.svg import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MANTISSAS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
"""Ticks of logarithmic axes, from few to many."""
_LABEL_GAP = 13.0  # points: a line of text of the figures' size
_DPI = 72.0  # so that a point is a unit of the SVG
_MARKER_SIZES = {"o": 6.5, "^": 7.5, "v": 7.5, "P": 7.5, "X": 7.5, "h": 7.0}  # points: shapes of about one area


def new_drawing(
    name: str, title: str, columns: int = 1, tones: Sequence[Tone] = (), height_inches: float = 5.4
) -> tuple[Drawing, list[Axes]]:
    """An empty figure with axes side by side."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.06)
    figure = Figure(figsize=(10.0, height_inches), dpi=_DPI, layout=layout)
    drawing = Drawing(name, title, figure, (*FIXED, *tones))
    axes = [figure.add_subplot(1, columns, k + 1) for k in range(columns)]
    for ax in axes:
        _style(ax)
    return drawing, axes


def _style(ax: Axes) -> None:
    ax.set_facecolor("none")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(MUTED.light)
    ax.tick_params(colors=MUTED.light, length=0, pad=6)
    ax.tick_params(axis="x", length=4)
    ax.grid(True, color=GRID.light, linewidth=0.8)
    ax.set_axisbelow(True)


def name_axes(ax: Axes, x: str, y: str) -> None:
    """The x axis is named below, the y axis above its upper end, so that both read level."""
    ax.set_xlabel(x, color=INK.light, labelpad=8)
    ax.set_title(y, loc="left", color=INK.light, fontsize=10, pad=12)


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round values between two positive ends, at even steps of their logarithm."""
    found: list[float] = []
    for mantissas in _MANTISSAS:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = max(1, math.ceil((last - first) / most)) if mantissas == (1.0,) else 1
        ticks = [m * 10.0**k for k in range(first, last + 1, every) for m in mantissas]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) > most:
            break
        found = ticks
    return found


def log_axis(ax: Axes, axis: str, low: float, high: float, text: Callable[[float], str]) -> None:
    """A logarithmic axis from low to high with plain numbers at its ticks."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    set_scale, set_limits = (ax.set_xscale, ax.set_xlim) if axis == "x" else (ax.set_yscale, ax.set_ylim)
    set_scale("log")
    set_limits(low, high)
    ticks = log_ticks(low, high)
    part = ax.xaxis if axis == "x" else ax.yaxis
    part.set_major_locator(FixedLocator(ticks))
    part.set_major_formatter(FixedFormatter([text(tick) for tick in ticks]))
    part.set_minor_locator(NullLocator())


def count_axis(ax: Axes, axis: str, values: Sequence[float], room: tuple[float, float] = (0.06, 0.06)) -> None:
    """A logarithmic axis of parameters or tokens that holds these values."""
    log_axis(ax, axis, *padded(values, room), format_count)


def flops_axis(ax: Axes, axis: str, values: Sequence[float], room: tuple[float, float] = (0.06, 0.06)) -> None:
    """A logarithmic axis of FLOPs that holds these values."""
    log_axis(ax, axis, *padded(values, room), format_flops)


def loss_axis(ax: Axes, values: Sequence[float], room: tuple[float, float] = (0.08, 0.08)) -> None:
    """A logarithmic axis of loss; its ticks are evenly spaced numbers, since it seldom spans a decade."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

    low, high = padded(values, room)
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ticks = [float(t) for t in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= t <= high]
    digits = max((len(f"{tick:.4g}".partition(".")[2]) for tick in ticks), default=2)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{tick:.{digits}f}" for tick in ticks]))
    ax.yaxis.set_minor_locator(NullLocator())


def padded(values: Sequence[float], room: tuple[float, float]) -> tuple[float, float]:
    """Ends that hold positive values, with a share of the logarithmic span beyond each end."""
    logs = [math.log(value) for value in values]
    low, high = min(logs), max(logs)
    span = max(high - low, 0.05)
    return math.exp(low - room[0] * span), math.exp(high + room[1] * span)


def end_labels(ax: Axes, labels: Sequence[tuple[float, float, str, Tone]]) -> None:
    """Labels to the right of the points (x, y), moved apart where they would overlap. Limits must be final."""
    spots = [(*ax.transData.transform((x, y)), text, tone) for x, y, text, tone in labels]
    placed: list[tuple[float, float]] = []
    for (x, y, text, tone), (at_x, at_y, *_) in zip(spots, labels, strict=True):
        height = y
        while any(abs(height - other) < _LABEL_GAP and abs(x - beside) < 60.0 for beside, other in placed):
            height -= 1.0
        placed.append((x, height))
        ax.annotate(
            text,
            (at_x, at_y),
            xytext=(8.0, height - y),
            textcoords="offset points",
            va="center",
            color=tone.light,
            fontsize=9.5,
            fontweight="bold",
        )


def mark(drawing: Drawing, ax: Axes, x: float, y: float, tip: str, tone: Tone, marker: str = "o") -> None:
    """One point, with what is shown when it is pointed at; the limits of the axes must hold it."""
    from flopsfit_ds.report.figures.artists.many import Look, Mark, Marks

    marks = next((child for child in ax.artists if isinstance(child, Marks)), None) or Marks(ax, zorder=4)
    look = Look(marker, _MARKER_SIZES.get(marker, 6.0), tone.light, PAPER.light, 0.6)
    marks.marks.append(Mark(x, y, drawing.tip(tip), look))

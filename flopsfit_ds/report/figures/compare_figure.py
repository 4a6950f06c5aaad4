"""Two recipes: the multiplier against compute, with what matched runs say."""

from __future__ import annotations

import math

from flopsfit_ds.base.units import format_flops
from flopsfit_ds.decide.comparing.compare import Comparison, Multiplier
from flopsfit_ds.report.figures.axes import flops_axis, log_axis, mark, name_axes, new_drawing, padded
from flopsfit_ds.report.figures.palette import BAND, INK, LAW, MUTED
from flopsfit_ds.report.figures.svg import Drawing

_WIDEST = 100.0
"""Multipliers beyond are cut: the axis would show nothing else."""


def compare_figure(found: Comparison) -> Drawing:
    """The curve over the shared range with its joint band, the multipliers asked for, and matched pairs."""
    drawing, (ax,) = new_drawing("comparison", f"Compute that {found.a} needs to be as good as {found.b}")
    pairs = () if found.matched is None else found.matched.pairs
    asked = [point for point in found.multipliers if math.isfinite(point.value)]
    values = [1.0, *(v for point in (*found.curve, *asked) for v in _shown(point))]
    values += [_cut(pair.multiplier) for pair in pairs]
    flops_axis(ax, "x", [*(p.compute for p in found.curve), *(p.compute for p in asked), *(p.compute for p in pairs)])
    log_axis(ax, "y", *padded(values, (0.08, 0.08)), lambda value: f"{value:g}x")
    x = [point.compute for point in found.curve]
    ax.fill_between(
        x,
        [_cut(point.interval.low) for point in found.curve],
        [_cut(point.interval.high) for point in found.curve],
        color=BAND.light,
        alpha=0.18,
        linewidth=0,
    )
    ax.plot(x, [_cut(point.value) for point in found.curve], color=LAW.light, linewidth=2)
    ax.axhline(1.0, color=INK.light, linewidth=0.8)
    for pair in pairs:
        tip = f"{format_flops(pair.compute)} FLOPs: a pair of runs, {pair.multiplier:.3g} times"
        mark(drawing, ax, pair.compute, _cut(pair.multiplier), tip, MUTED, "s")
    for point in asked:
        low, high = (_cut(end) for end in (point.interval.low, point.interval.high))
        ax.plot([point.compute] * 2, [low, high], color=INK.light, linewidth=1.2)
        tip = f"{format_flops(point.compute)} FLOPs: {point.value:.3g} times, {low:.3g} to {high:.3g}"
        mark(drawing, ax, point.compute, _cut(point.value), tip, INK)
    name_axes(ax, "Training compute of B, FLOPs", "Compute of A for the same loss, over it; squares: pairs of runs")
    return drawing


def _cut(value: float) -> float:
    return min(_WIDEST, max(1.0 / _WIDEST, value))


def _shown(point: Multiplier) -> tuple[float, float, float]:
    return _cut(point.value), _cut(point.interval.low), _cut(point.interval.high)

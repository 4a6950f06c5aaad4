"""Figures of the law: loss against compute, its residuals, and the optimum against compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_flops
from flopsfit_ds.fit.forecast.isoflop import BudgetMinimum
from flopsfit_ds.fit.forecast.optimum import Optimum
from flopsfit_ds.fit.forecast.prediction import Prediction
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.fit.solve.intervals import Interval
from flopsfit_ds.report.figures.axes import count_axis, flops_axis, loss_axis, mark, name_axes, new_drawing
from flopsfit_ds.report.figures.budget_figures import (
    draw_diamond,
    draw_minimum,
    parameters_name,
    point_style,
    point_tip,
)
from flopsfit_ds.report.figures.palette import BAND, INK, LAW, MUTED, PAPER, Tone
from flopsfit_ds.report.figures.svg import Drawing
from flopsfit_ds.report.findings import Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FRONTIER_POINTS = 48  # a smooth line; each is a whole prediction
_OPTIMUM_POINTS = 24  # straight lines but for the rule of C/(N D)
_WIDEST_BAND = 5.0  # times the line: a wider interval would flatten all others, and leaves the axes


def frontier_figure(findings: Findings) -> Drawing:
    """Loss against compute: every point, the law's optimum with its band, and the prediction at the target."""
    tones, styles = point_style(findings)
    drawing, (ax,) = new_drawing("frontier", "Held-out loss against training compute", 1, tones)
    measured = [point.compute_flops for point in findings.points]
    frontier = _frontier(findings)
    losses = [point.loss for point in findings.points] + [prediction.loss for prediction in frontier]
    if findings.prediction is not None and math.isfinite(findings.prediction.interval.low):
        losses.append(findings.prediction.interval.low)
    flops_axis(ax, "x", [*measured, *(prediction.compute for prediction in frontier)])
    loss_axis(ax, losses, (0.14, 0.08))
    name_axes(ax, "Training compute C, FLOPs", findings.named("Held-out loss"))
    if frontier:
        _draw_frontier(ax, frontier)
        _draw_target(drawing, ax, findings, max(measured))
    for point in findings.points:
        mark(drawing, ax, point.compute_flops, point.loss, point_tip(point), *styles[id(point)])
    for budget in findings.isoflop.budgets:
        if budget.loss is not None:
            tip = f"isoFLOP minimum of {format_flops(budget.compute_flops)} FLOPs\nloss {budget.loss:.4f}"
            draw_diamond(drawing, ax, budget.compute_flops, budget.loss, tip)
    return drawing


def _frontier(findings: Findings) -> list[Prediction]:
    """Predictions along the optimum, from the least compute measured to the target; none without an optimum."""
    if findings.fit is None or findings.target is None:
        return []
    low = min(point.compute_flops for point in findings.points)
    high = max(findings.target.compute, max(point.compute_flops for point in findings.points))
    computes = np.geomspace(low, high, _FRONTIER_POINTS)
    try:
        return [findings.fit.predict(float(compute)) for compute in computes]
    except FitError:
        return []


def _draw_frontier(ax: Axes, frontier: Sequence[Prediction]) -> None:
    computes = [p.compute for p in frontier]
    floor, roof = ax.get_ylim()
    low = [max(p.interval.low, floor * 0.5) for p in frontier]
    high = [min(p.interval.high, roof * 2.0) for p in frontier]
    ax.fill_between(computes, low, high, color=BAND.light, alpha=0.18, linewidth=0, zorder=1)
    ax.plot(computes, [p.loss for p in frontier], color=LAW.light, linewidth=2.0, zorder=3)


def _draw_target(drawing: Drawing, ax: Axes, findings: Findings, largest: float) -> None:
    prediction = findings.prediction
    assert prediction is not None
    if prediction.compute > largest * 1.01:
        ax.axvline(largest, color=MUTED.light, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
        ax.annotate(
            "measured  │  extrapolated",
            (largest, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -2),
            textcoords="offset points",
            ha="center",
            va="top",
            color=MUTED.light,
            fontsize=9,
        ).set_backgroundcolor(PAPER.light)
    span = prediction.interval
    if math.isfinite(span.low) and math.isfinite(span.high):
        ends = [[prediction.loss - span.low], [span.high - prediction.loss]]
        ax.errorbar(
            [prediction.compute], [prediction.loss], yerr=ends, fmt="none", ecolor=LAW.light, capsize=4, zorder=5
        )
    tip = f"predicted at {format_flops(prediction.compute)} FLOPs\nloss {prediction.loss:.4f}"
    draw_star(drawing, ax, prediction.compute, prediction.loss, tip)
    ax.annotate(
        f"predicted {prediction.loss:.3f}",
        (prediction.compute, prediction.loss),
        xytext=(-14, -6),
        textcoords="offset points",
        ha="right",
        va="top",
        color=LAW.light,
        fontweight="bold",
    )


def draw_star(drawing: Drawing, ax: Axes, x: float, y: float, tip: str) -> None:
    """The target, the same in every figure."""
    ax.plot(
        [x],
        [y],
        marker="*",
        markersize=15,
        markerfacecolor=LAW.light,
        markeredgecolor=PAPER.light,
        markeredgewidth=0.9,
        linestyle="none",
        gid=drawing.tip(tip),
        zorder=7,
    )


def residuals_figure(findings: Findings) -> Drawing:
    """How far the law is from each point, against N and against D."""
    assert findings.fit is not None
    tones, styles = point_style(findings)
    drawing, axes = new_drawing("residuals", "Residuals of the law against parameters and tokens", 2, tones, 3.9)
    percent = 100.0 * np.expm1(findings.fit.residuals)
    reach = 1.15 * max(0.05, float(np.abs(percent).max()))
    columns: tuple[tuple[str, Callable], ...] = (
        (parameters_name(findings), lambda p: p.num_params),
        ("Training tokens D", lambda p: p.num_tokens),
    )
    for ax, (name, value) in zip(axes, columns, strict=True):
        count_axis(ax, "x", [value(point) for point in findings.points])
        ax.set_ylim(-reach, reach)
        ax.axhline(0.0, color=LAW.light, linewidth=1.6, zorder=2)
        name_axes(ax, name, "Law minus measurement, % of loss")
        for point, residual in zip(findings.points, percent, strict=True):
            tip = f"{point_tip(point)}\nlaw {residual:+.2f}%"
            mark(drawing, ax, value(point), float(residual), tip, *styles[id(point)])
    return drawing


def optimum_figure(findings: Findings) -> Drawing:
    """N* and D* against compute: the law with its intervals, the isoFLOP minima and their own power law."""
    drawing, axes = new_drawing("optimum", "Compute-optimal parameters and tokens against training compute", 2, (), 4.4)
    lines = {} if findings.fit is None or findings.target is None else _optimum_lines(findings.fit, findings.target)
    minima = [b for b in findings.isoflop.budgets if b.num_params and b.num_tokens]
    sides = (
        ("num_params", f"Optimal {parameters_name(findings)[0].lower()}{parameters_name(findings)[1:]}*"),
        ("num_tokens", "Optimal tokens D*"),
    )
    for ax, (quantity, name) in zip(axes, sides, strict=True):
        line = lines.get(quantity)
        computes = ([] if line is None else list(line.computes)) + [b.compute_flops for b in minima]
        values = ([] if line is None else line.reach()) + [getattr(b, quantity) for b in minima]
        flops_axis(ax, "x", computes, (0.08, 0.08))
        count_axis(ax, "y", values, (0.12, 0.12))
        name_axes(ax, "Training compute C, FLOPs", name)
        if line is not None:
            _draw_law_line(ax, line)
        if quantity == "num_params":
            _draw_size_law(ax, findings)
        for budget in minima:
            _draw_budget(drawing, ax, budget, quantity)
        if findings.target is not None:
            target = findings.target
            tip = f"target {format_flops(target.compute)} FLOPs"
            draw_star(drawing, ax, target.compute, getattr(target, quantity), tip)
        _legend(ax, findings, quantity)
    return drawing


def _draw_budget(drawing: Drawing, ax: Axes, budget: BudgetMinimum, quantity: str) -> None:
    """D* has the standard error of N*, since at fixed compute the two move against each other."""
    draw_minimum(drawing, ax, budget, budget.compute_flops, getattr(budget, quantity), horizontal=False)


@dataclass(frozen=True, eq=False)
class _Line:
    """A quantity of the optimum along compute, and the optima that have intervals."""

    computes: FloatArray
    values: FloatArray
    known: tuple[tuple[float, float, Interval], ...]

    def reach(self) -> list[float]:
        """Values that the axis should hold: the line, and intervals as far as they are of its size."""
        ends = [end for _, _, interval in self.known for end in (interval.low, interval.high)]
        low, high = float(self.values.min()) / _WIDEST_BAND, float(self.values.max()) * _WIDEST_BAND
        return [*self.values.tolist(), *(end for end in ends if low <= end <= high)]


def _optimum_lines(fit: ScalingFit, target: Optimum) -> dict[str, _Line]:
    """N* and D* from the least compute measured to the target; the intervals are those of the table."""
    measured = [point.compute_flops for point in fit.points]
    computes = np.geomspace(min(measured), max(target.compute, *measured), _OPTIMUM_POINTS)
    optima = [fit.at.optimum(float(compute)) for compute in computes]
    rising = sorted(fit.optima, key=lambda o: o.compute)
    return {
        name: _Line(
            computes,
            np.array([getattr(o, name) for o in optima]),
            tuple((o.compute, getattr(o, name), o.intervals[name]) for o in rising if name in o.intervals),
        )
        for name in ("num_params", "num_tokens")
    }


def _draw_law_line(ax: Axes, line: _Line) -> None:
    """The line with its band through the known intervals; a bar where there is one alone."""
    ax.plot(line.computes, line.values, color=LAW.light, linewidth=2.0, zorder=3)
    floor, roof = ax.get_ylim()
    low = [max(interval.low, floor * 1e-3) for _, _, interval in line.known]
    high = [min(interval.high, roof * 1e3) for _, _, interval in line.known]
    computes = [compute for compute, _, _ in line.known]
    if len(line.known) > 1:
        ax.fill_between(computes, low, high, color=BAND.light, alpha=0.18, linewidth=0, zorder=1)
    for compute, value, interval in line.known[-1:]:
        if math.isfinite(interval.high) and interval.low > 0:
            ends = [[value - interval.low], [interval.high - value]]
            ax.errorbar([compute], [value], yerr=ends, fmt="none", ecolor=LAW.light, capsize=4, zorder=5)


def _draw_size_law(ax: Axes, findings: Findings) -> None:
    law = findings.isoflop.size_law
    if law is None:
        return
    ends = ax.get_xlim()
    ax.plot(ends, [law.at(c) for c in ends], color=INK.light, linewidth=1.1, linestyle=(0, (4, 3)), zorder=2)
    ax.set_xlim(ends)


def _legend(ax: Axes, findings: Findings, quantity: str) -> None:
    """Direct labels in the lower right corner, which rising lines leave free: what each line is, and its exponent."""
    symbol = "N*" if quantity == "num_params" else "D*"
    lines: list[tuple[str, Tone]] = []
    fit = findings.fit
    if fit is not None and fit.optima:
        name = "a" if quantity == "num_params" else "b"
        error = fit.standard_errors.get(name)
        text = "" if error is None else f" ± {error:.3f}"
        lines.append((f"law: {symbol} ∝ C^{getattr(fit.law, name):.3f}{text}", LAW))
    size_law = findings.isoflop.size_law
    if size_law is not None and quantity == "num_params":
        text = "" if size_law.standard_error is None else f" ± {size_law.standard_error:.3f}"
        lines.append((f"isoFLOP minima: {symbol} ∝ C^{size_law.exponent:.3f}{text}", INK))
    elif any(b.num_params for b in findings.isoflop.budgets):
        lines.append(("isoFLOP minima", INK))
    for k, (text, tone) in enumerate(reversed(lines)):
        ax.annotate(
            text,
            (0.99, 0.03),
            xycoords="axes fraction",
            xytext=(0, 15 * k),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=tone.light,
            fontsize=9.5,
            fontweight="bold",
            zorder=8,
        )

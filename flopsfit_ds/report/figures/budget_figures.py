"""Figures of the measurements: isoFLOP valleys, or loss against tokens where there are no budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.fit.forecast.isoflop import BudgetMinimum, budget_groups
from flopsfit_ds.fit.points.points import Point
from flopsfit_ds.report.figures.axes import count_axis, end_labels, loss_axis, mark, name_axes, new_drawing
from flopsfit_ds.report.figures.palette import INK, MARKERS, MUTED, PAPER, Tone, budget_tones
from flopsfit_ds.report.figures.svg import Drawing
from flopsfit_ds.report.findings import Findings
from flopsfit_ds.report.values import log_error_text
from flopsfit_ds.spec.fit_options import COUNT_FIELDS, COUNT_WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVE_POINTS = 80  # a straight piece every ten points of the figure
_BEYOND = 0.1  # of the sizes tried: the curve shows where it would go, and no more
_LONGEST_BAR = 20.0
"""Standard error of ln N* that is drawn; any longer bar leaves the axes as well."""


def point_tip(point: Point) -> str:
    """What a point says when pointed at."""
    error = "" if point.loss_standard_error is None else f" ± {point.loss_standard_error:.4f}"
    lines = [point.label or point.run_id or "", f"loss {point.loss:.4f}{error}"]
    lines.append(f"N {format_count(point.num_params)}, D {format_count(point.num_tokens)}")
    lines.append(f"{format_flops(point.compute_flops)} FLOPs")
    return "\n".join(line for line in lines if line)


def points_of_budgets(findings: Findings) -> list[tuple[BudgetMinimum, list[Point]]]:
    """Each budget with the points that belong to it."""
    found: list[tuple[BudgetMinimum, list[Point]]] = []
    for group in budget_groups(findings.points):
        members = [findings.points[k] for k in group]
        nominal = members[0].compute_budget_flops
        compute = nominal or float(np.exp(np.mean([math.log(p.compute_flops) for p in members])))
        for budget in findings.isoflop.budgets:
            if math.isclose(budget.compute_flops, compute, rel_tol=1e-6):
                found.append((budget, members))
    return found


def points_of_sizes(findings: Findings) -> list[list[Point]]:
    """Points of each size by rising tokens, sizes rising."""
    by_size: dict[float, list[Point]] = {}
    for point in sorted(findings.points, key=lambda p: (p.num_params, p.num_tokens)):
        by_size.setdefault(round(math.log(point.num_params), 3), []).append(point)
    return list(by_size.values())


def point_style(findings: Findings) -> tuple[tuple[Tone, ...], dict[int, tuple[Tone, str]]]:
    """The tones of all figures, and colour and marker of each point (by its identity).

    They follow the budget, or the size where there are no budgets; points of no budget are muted.
    """
    groups = [m for _, m in points_of_budgets(findings)] if findings.has_isoflop else points_of_sizes(findings)
    tones = budget_tones(len(groups))
    styles = {id(point): (MUTED, MARKERS[0]) for point in findings.points}
    for k, members in enumerate(groups):
        for point in members:
            styles[id(point)] = (tones[k], MARKERS[k % len(MARKERS)])
    return tones, styles


def parameters_name(findings: Findings) -> str:
    """Name of the N axis."""
    return f"{COUNT_WORDS[findings.parameter_count].capitalize()} N"


def isoflop_figure(findings: Findings) -> Drawing:
    """Loss against size, a valley a budget, with its curve and minimum."""
    groups = points_of_budgets(findings)
    tones, styles = point_style(findings)
    drawing, (ax,) = new_drawing("isoflop", "Held-out loss against parameters at each compute budget", 1, tones)
    _axes_of_valleys(ax, findings, groups)
    name_axes(ax, parameters_name(findings), findings.named("Held-out loss"))
    labels: list[tuple[float, float, str, Tone]] = []
    for k, (budget, members) in enumerate(groups):
        _valley(ax, budget, members, tones[k])
        for point in members:
            mark(drawing, ax, point.num_params, point.loss, point_tip(point), *styles[id(point)])
        last = max(members, key=lambda p: p.num_params)
        height = last.loss if budget.coefficients is None else float(budget.curve(np.array([last.num_params]))[0])
        labels.append((last.num_params, height, format_flops(budget.compute_flops), tones[k]))
    _minima(drawing, ax, findings)
    _left_out(drawing, ax, findings)
    end_labels(ax, labels)
    return drawing


def _axes_of_valleys(ax: Axes, findings: Findings, groups: Sequence[tuple[BudgetMinimum, list[Point]]]) -> None:
    points = [point for _, members in groups for point in members]
    losses = [p.loss for p in points] + [b.loss for b, _ in groups if b.loss]
    count_axis(ax, "x", [p.num_params for p in points], (0.05, 0.12))
    loss_axis(ax, losses)


def _valley(ax: Axes, budget: BudgetMinimum, members: Sequence[Point], tone: Tone) -> None:
    if budget.coefficients is not None:
        low, high = (math.log(size) for size in budget.sizes)
        room = _BEYOND * (high - low)
        sizes = np.exp(np.linspace(low - room, high, _CURVE_POINTS))
        style = "-" if budget.refused is None else (0, (4, 3))
        ax.plot(sizes, budget.curve(sizes), color=tone.light, linewidth=1.6, linestyle=style, zorder=2)
    known = [p for p in members if p.loss_standard_error is not None]
    if known:
        ax.errorbar(
            [p.num_params for p in known],
            [p.loss for p in known],
            yerr=[p.loss_standard_error or 0.0 for p in known],
            fmt="none",
            ecolor=tone.light,
            elinewidth=1.0,
            capsize=2.5,
            zorder=3,
        )


def _minima(drawing: Drawing, ax: Axes, findings: Findings) -> None:
    found = [(b, b.num_params, b.loss) for b in findings.isoflop.budgets if b.num_params and b.loss]
    if len(found) > 1:
        ax.plot(
            [size for _, size, _ in found],
            [loss for _, _, loss in found],
            color=INK.light,
            linewidth=1.0,
            linestyle=(0, (1, 2.5)),
            zorder=3,
        )
    for budget, size, loss in found:
        draw_minimum(drawing, ax, budget, size, loss, horizontal=True)
    for budget, members in points_of_budgets(findings):
        if budget.refused and budget.coefficients is not None:
            best = min(members, key=lambda p: p.loss)
            ax.plot(
                [best.num_params],
                [best.loss],
                marker="o",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor=INK.light,
                markeredgewidth=1.2,
                linestyle="none",
                gid=drawing.tip(budget.refused),
                zorder=5,
            )
            ax.annotate(
                "no minimum",
                (best.num_params, best.loss),
                xytext=(0, -17),
                textcoords="offset points",
                ha="center",
                color=INK.light,
                fontsize=9,
                bbox={"facecolor": PAPER.light, "edgecolor": "none", "pad": 1.0},
                zorder=5,
            )


def draw_minimum(drawing: Drawing, ax: Axes, budget: BudgetMinimum, x: float, y: float, *, horizontal: bool) -> None:
    """The minimum of a budget as a ring with the standard error of its size, along x or along y."""
    error = budget.log_num_params_standard_error
    tip = f"isoFLOP minimum of {format_flops(budget.compute_flops)} FLOPs\nN* {format_count(budget.num_params or 0)}"
    if error is not None:
        tip += f" (standard error {log_error_text(error)})"
        size = x if horizontal else y
        reach = min(error, _LONGEST_BAR)
        ends = [[size - size * math.exp(-reach)], [size * math.exp(reach) - size]]
        ax.errorbar(
            [x],
            [y],
            xerr=ends if horizontal else None,
            yerr=None if horizontal else ends,
            fmt="none",
            ecolor=INK.light,
            elinewidth=1.4,
            capsize=4,
            zorder=5,
        )
    draw_diamond(drawing, ax, x, y, tip)


def draw_diamond(drawing: Drawing, ax: Axes, x: float, y: float, tip: str) -> None:
    """A minimum, the same in every figure."""
    ax.plot(
        [x],
        [y],
        marker="D",
        markersize=7,
        markerfacecolor=PAPER.light,
        markeredgecolor=INK.light,
        markeredgewidth=1.6,
        linestyle="none",
        gid=drawing.tip(tip),
        zorder=6,
    )


def _left_out(drawing: Drawing, ax: Axes, findings: Findings) -> None:
    """Finished runs outside the fit, as crosses, where they lie within the axes."""
    low, high = ax.get_ylim()
    for run in findings.excluded:
        if run.record is None or run.record.loss is None or not low <= run.record.loss <= high:
            continue
        planned = run.record.planned
        size = getattr(planned, COUNT_FIELDS[findings.parameter_count])
        if size is None:
            continue
        ax.plot(
            [size],
            [run.record.loss],
            marker="x",
            markersize=6,
            markeredgecolor=MUTED.light,
            linestyle="none",
            gid=drawing.tip(f"{run.name}\nnot in the fit: {run.reason}"),
            zorder=3,
        )


def tokens_figure(findings: Findings) -> Drawing:
    """Loss against tokens, a line a size: for designs without compute budgets."""
    tones, styles = point_style(findings)
    drawing, (ax,) = new_drawing("tokens", "Held-out loss against tokens for each size", 1, tones)
    count_axis(ax, "x", [p.num_tokens for p in findings.points], (0.05, 0.14))
    loss_axis(ax, [p.loss for p in findings.points])
    name_axes(ax, "Training tokens D", findings.named("Held-out loss"))
    labels: list[tuple[float, float, str, Tone]] = []
    for k, members in enumerate(points_of_sizes(findings)):
        _law_at_size(ax, findings, members, tones[k])
        for point in members:
            mark(drawing, ax, point.num_tokens, point.loss, point_tip(point), *styles[id(point)])
        last = members[-1]
        labels.append((last.num_tokens, last.loss, format_count(last.num_params), tones[k]))
    _left_out_tokens(drawing, ax, findings)
    end_labels(ax, labels)
    return drawing


def _law_at_size(ax: Axes, findings: Findings, members: Sequence[Point], tone: Tone) -> None:
    """The law along one size; without a law, a line from point to point."""
    if findings.fit is None:
        ax.plot([p.num_tokens for p in members], [p.loss for p in members], color=tone.light, linewidth=1.2, zorder=2)
        return
    log_d = np.linspace(math.log(members[0].num_tokens), math.log(members[-1].num_tokens), _CURVE_POINTS)
    log_n = np.full_like(log_d, math.log(members[0].num_params))
    loss = np.exp(findings.fit.at.log_loss(log_n, log_d))
    ax.plot(np.exp(log_d), loss, color=tone.light, linewidth=1.4, zorder=2, gid=f"law-{tone.name}")


def _left_out_tokens(drawing: Drawing, ax: Axes, findings: Findings) -> None:
    low, high = ax.get_ylim()
    for run in findings.excluded:
        if run.record is None or run.record.loss is None or not low <= run.record.loss <= high:
            continue
        tokens = run.record.planned.num_tokens
        tip = drawing.tip(f"{run.name}\nnot in the fit: {run.reason}")
        ax.plot([tokens], [run.record.loss], marker="x", markersize=6, markeredgecolor=MUTED.light, gid=tip, zorder=3)

"""Figure of the training curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.report.curves import AXES, LossCurve, thinned
from flopsfit_ds.report.figures.axes import (
    count_axis,
    end_labels,
    log_axis,
    loss_axis,
    name_axes,
    new_drawing,
    padded,
)
from flopsfit_ds.report.figures.palette import Tone, budget_tones
from flopsfit_ds.report.figures.svg import Drawing

_POINTS_A_CURVE = 160
"""As many as can be told apart on a figure ten inches wide."""
_POINTS = 16_000
_FEWEST = 16
"""Of all curves together, and of one at least: a page of 100 runs stays below a megabyte, one of 1,000 below 5."""
_EARLY = 0.02
"""Share of a run whose losses may leave the figure: the fall from the first steps would flatten all the rest."""


class Changes(Protocol):
    """How far activations moved, over widths or depths."""

    @property
    def over(self) -> Literal["width", "depth"]:
        """What grows."""
        ...

    @property
    def values(self) -> tuple[int, ...]:
        """Sizes."""
        ...

    @property
    def changes(self) -> dict[str, tuple[float, ...]]:
        """By activation, at each size."""
        ...


def coordinates_figure(pairs: Sequence[tuple[Changes, Changes]]) -> Drawing:
    """How far activations move in a few steps, with muP (lines) and without (dashes), over widths and over depths.

    Args:
        pairs: With the rule and without; one or two.
    """
    names = list(pairs[0][0].changes)
    tones: dict[str, Tone] = dict(zip(names, budget_tones(len(names)), strict=True))
    title = f"Change of activations over {' and '.join(ruled.over for ruled, _ in pairs)}, with muP and without"
    drawing, axes = new_drawing("coordinates", title, len(pairs), tuple(tones.values()))
    shown = [each for pair in pairs for found in pair for row in found.changes.values() for each in row]
    for ax, (ruled, plain) in zip(axes, pairs, strict=True):
        for found, words, style in ((ruled, "with muP", "-"), (plain, "without", "--")):
            for name, row in found.changes.items():
                ends = f"{row[0]:.3g} at {found.values[0]}, {row[-1]:.3g} at {found.values[-1]}"
                tip = drawing.tip(f"{name}, {words}\n{ends}")
                ax.plot(found.values, row, style, color=tones[name].light, linewidth=1.6, gid=tip, zorder=2)
        count_axis(ax, "x", list(ruled.values))
        log_axis(ax, "y", *padded(shown, (0.05, 0.05)), lambda value: f"{value:.3g}")
        ends = [(ruled.values[-1], row[-1], name, tones[name]) for name, row in ruled.changes.items()]
        end_labels(ax, ends)
        name_axes(ax, ruled.over.capitalize(), "Change, root mean square: with muP lines, without dashes")
    return drawing


def curves_figure(
    curves: Sequence[LossCurve], over: str = "tokens", smooth: float = 0.9, unit: str = "nats per token"
) -> Drawing:
    """Training loss of runs, coloured by budget, or one by one where there are no budgets.

    Args:
        curves: At least one.
        over: Key of `AXES`.
        smooth: Share of the past in each value.
        unit: Of the loss; empty where it is not known.
    """
    from flopsfit_ds.report.figures.artists.many import Line, Lines

    groups = sorted({curve.budget for curve in curves if curve.budget is not None})
    keys = [curve.budget if groups else curve.run_id for curve in curves]
    order = list(groups) if groups else [curve.run_id for curve in curves]
    tones: dict[object, Tone] = dict(zip(order, budget_tones(len(order)), strict=True))
    drawing, (ax,) = new_drawing("curves", f"Training loss against {AXES[over]}", 1, tuple(tones.values()))
    shown: list[float] = []
    reach: list[float] = []
    lines = []
    most = max(_FEWEST, min(_POINTS_A_CURVE, _POINTS // len(curves)))
    for curve, key in zip(curves, keys, strict=True):
        xs, ys = thinned(curve.along(over), curve.smoothed(smooth), most)
        shown += [y for x, y in zip(xs, ys, strict=True) if x >= _EARLY * xs[-1]]
        reach += [xs[0], xs[-1]]
        tone = tones.get(key, next(iter(tones.values())))
        tip = f"{curve.label}\nloss {ys[-1]:.4f} at step {curve.steps[-1]}"
        lines.append(Line(xs, ys, drawing.tip(tip), tone.light, 1.3, 0.9))
    Lines(ax, 2, lines)
    log_axis(ax, "x", *padded(reach, (0.02, 0.04)), format_flops if over == "flops" else format_count)
    loss_axis(ax, shown)
    name_axes(ax, AXES[over].capitalize().replace("flop", "FLOP"), f"Training loss{unit and ', ' + unit} (smoothed)")
    drawing.plane = ax
    return drawing

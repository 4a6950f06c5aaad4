"""`curves`: how the training loss of runs fell, in the terminal, as a figure and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopsfit_ds.base.errors import DataError, SweepFolderError
from flopsfit_ds.base.storage import atomic_write
from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.cli.options import SweepFolderArgument, require_sweep
from flopsfit_ds.cli.prose import say
from flopsfit_ds.cli.sweeping.logs import choose_runs

if TYPE_CHECKING:
    from flopsfit_ds.records import SweepFolder
    from flopsfit_ds.report.curves import LossCurve

_MARKS = "abcdefgh"
"""A letter a curve; more than these cannot be told apart in a terminal."""
_HEIGHT = 20
"""Lines: a terminal of 24 has room for the axis, the legend and the prompt."""
_EARLY = 0.02
"""Share of a run that is not drawn: the fall of the first steps would flatten the rest."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def curves(  # pyright: ignore[reportUnusedFunction]
        folder: SweepFolderArgument,
        runs: Annotated[
            list[str] | None, typer.Argument(metavar="[RUN]...", help="Ids or labels, or how they begin.")
        ] = None,
        over: Annotated[str, typer.Option(metavar="tokens|steps|flops", help="The axis.")] = "tokens",
        smooth: Annotated[float, typer.Option(min=0, max=0.999, help="Share of the past in each value.")] = 0.9,
        as_csv: Annotated[Path | None, typer.Option("--csv", help="Write all points, not smoothed, to this.")] = None,
        svg: Annotated[Path | None, typer.Option("--svg", help="Write a figure to this.")] = None,
    ) -> None:
        """Draw the training loss of a sweep's runs, finished or not, against tokens, steps or FLOPs.

        Example: flopsfit-ds curves outputs/quickstart 1e11 --svg curves.svg
        """
        from flopsfit_ds.engine.disk.watch import look_at
        from flopsfit_ds.records import SweepFolder
        from flopsfit_ds.report.curves import AXES, read_curves
        from flopsfit_ds.report.figures.curve_figures import curves_figure
        from flopsfit_ds.report.figures.svg import rendered
        from flopsfit_ds.study.console import Console

        require_sweep(folder)
        if over not in AXES:
            raise SweepFolderError(f"--over {over}: there is no such axis; write {', '.join(AXES)}")
        sweep = SweepFolder(folder)
        chosen = choose_runs(look_at(sweep).runs, runs or [])
        found = read_curves(sweep, [run.run_id for run in chosen])
        if not found:
            raise SweepFolderError(f"{folder}: none of these runs has trained a step yet")
        unit = _unit(sweep)
        if as_csv is not None:
            atomic_write(as_csv, curves_csv(found))
        if svg is not None:
            (figure,), _ = rendered(lambda: [curves_figure(found, over, smooth, unit)])
            atomic_write(svg, figure.standalone)
        for line in terminal_figure(found, over, smooth, Console().width, unit).splitlines():
            say(line)


def _unit(sweep: SweepFolder) -> str:
    """Of the losses; empty where the plan is of another version, for curves are still drawn then."""
    from flopsfit_ds.decide.sources import read_sweep_plan
    from flopsfit_ds.report.findings import unit_of_loss

    try:
        return unit_of_loss(read_sweep_plan(sweep), ())
    except DataError:
        return ""


def curves_csv(curves: Sequence[LossCurve]) -> str:
    """A row a step of each run: loss, learning rate and gradient norm as recorded, nothing smoothed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run_id", "label", "step", "tokens", "flops", "loss", "learning_rate", "gradient_norm"])
    for curve in curves:
        rows = zip(curve.steps, curve.losses, curve.learning_rates, curve.gradient_norms, strict=True)
        for step, loss, rate, norm in rows:
            tokens, flops = step * curve.tokens_per_step, step * curve.flops_per_step
            writer.writerow([curve.run_id, curve.label, step, tokens, f"{flops:.6g}", loss, rate, norm])
    return text.getvalue()


def terminal_figure(curves: Sequence[LossCurve], over: str, smooth: float, width: int, unit: str = "") -> str:
    """The curves as text: each with a letter of its own, and below a line a run with its last values.

    Args:
        curves: At least one; the first few are drawn, all are listed.
        over: Key of `AXES`.
        smooth: Share of the past in each value.
        width: Columns of the terminal.
        unit: Of the losses; empty where nobody here knows it.
    """
    import plotext

    from flopsfit_ds.report.curves import AXES, thinned
    from flopsfit_ds.report.figures.axes import log_ticks

    plot: Any = plotext
    plot.clear_figure()
    plot.theme("clear")
    plot.plot_size(width, _HEIGHT)
    for curve, mark in zip(curves, _MARKS, strict=False):
        xs, ys = thinned(curve.along(over), curve.smoothed(smooth), 2 * width)
        early = sum(x < _EARLY * xs[-1] for x in xs[:-1])
        plot.plot(xs[early:], ys[early:], marker=mark)
    plot.xscale("log")
    reach = [x for curve in curves[: len(_MARKS)] for x in curve.along(over)]
    ticks = log_ticks(max(min(reach), _EARLY * max(reach)), max(reach), most=5)
    plot.xticks(ticks, [format_flops(tick) if over == "flops" else format_count(tick) for tick in ticks])
    plot.xlabel(AXES[over])
    figure = "\n".join(line.rstrip() for line in plot.uncolorize(plot.build()).splitlines())
    rows = [
        f"{mark} {curve.label}: loss {curve.smoothed(smooth)[-1]:.4f} at step {curve.steps[-1]}"
        for curve, mark in zip(curves, _MARKS.ljust(len(curves)), strict=False)
    ]
    left = len(curves) - len(_MARKS)
    rows += [f"{left} more are listed and not drawn; name those to draw"] if left > 0 else []
    return "\n".join([f"training loss{unit and ', '}{unit}, smoothed", figure, *rows])

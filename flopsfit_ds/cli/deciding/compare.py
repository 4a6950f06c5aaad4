"""`compare`: how much compute one recipe saves over another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopsfit_ds.base.units import format_flops, format_ratio
from flopsfit_ds.cli.options import AsJson, given_files, quantity, require_writable, write_text
from flopsfit_ds.cli.prose import say
from flopsfit_ds.spec.fit_options import DEFAULTS

if TYPE_CHECKING:
    from flopsfit_ds.decide.comparing.compare import Comparison


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare_command)


def compare_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Runs of one recipe: a table, a sweep folder, a fit or -.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Runs of the other.")],
    compute: Annotated[
        list[str] | None, typer.Option(help="FLOPs to compare at; may be given several times; over the runs without.")
    ] = None,
    law: Annotated[str, typer.Option(help="Form of law fitted to both.")] = DEFAULTS.law,
    level: Annotated[float, typer.Option(help="Probability of the intervals, and of no false difference.")] = 0.9,
    figure: Annotated[Path | None, typer.Option(help="Write a figure to this file, as SVG.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file, whole by itself.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two recipes: how many times the compute A needs to be as good as B, and whether that is real.

    Example: flopsfit-ds compare outputs/base outputs/new-recipe --compute 1e22
    """
    from flopsfit_ds.decide.comparing.compare import compare_runs
    from flopsfit_ds.decide.sources import read_sources

    require_writable(figure, html)
    computes = [quantity(text, "--compute") for text in compute or []]
    with given_files([a, b]) as (first_file, second_file):
        first, second = read_sources([first_file]), read_sources([second_file])
    found = compare_runs(first, second, computes=computes, law=law, level=level)
    if figure is not None:
        from flopsfit_ds.report.figures.compare_figure import compare_figure
        from flopsfit_ds.report.figures.svg import rendered

        (drawn,), _ = rendered(lambda: [compare_figure(found)])
        write_text(figure, drawn.standalone)
    if html is not None:
        from flopsfit_ds.report.deciding.compare_page import render_comparison

        write_text(html, render_comparison(found))
    if as_json:
        print(json.dumps(found.to_json_dict(), allow_nan=False))
    else:
        _print_comparison(found)


def _print_comparison(found: Comparison) -> None:
    from flopsfit_ds.decide.comparing.words import ends, times

    (low, high), counts = found.shared, found.num_points
    say(f"A {found.a} ({counts[0]} runs), B {found.b} ({counts[1]} runs); the {found.law} law of each")
    say(f"both were run from {format_flops(low)} to {format_flops(high)} FLOPs")
    say(f"compute that A needs to be as good as B, over B's, with {found.level:.0%} intervals:")
    for point in found.multipliers:
        ahead = f", {format_ratio(point.beyond)} times beyond the runs" if point.beyond > 1.01 else ""
        say(f"  {format_flops(point.compute):>8}  {times(point.value):>7}  {ends(point.interval)}{ahead}")
    if found.matched is None:
        say("no two runs have the same size and tokens, so nothing but the laws can tell")
    else:
        told = found.matched
        interval = "" if told.interval is None else f" ({ends(told.interval)})"
        say(
            f"by {len(told.pairs)} pairs of the same size and tokens: {times(told.multiplier)}{interval}; B's losses "
            f"differ by {math.expm1(told.log_loss_change):+.2%}"
        )
    if found.crossing is not None:
        cross = found.crossing
        say(
            f"the laws cross at {format_flops(cross.compute)} FLOPs ({format_flops(cross.interval.low)} to "
            f"{format_flops(cross.interval.high)}); {cross.share:.0%} of resamples cross within the runs"
        )
    shown = "leave out" if found.verdict != "no difference is shown" else "hold"
    say(
        f"{found.verdict} where both were run: bands of the laws or the mean of the pairs, {found.level:.0%} together, "
        f"{shown} a multiplier of 1"
    )
    say("both losses are taken to be of the same held-out data and tokenizer")

"""`check-mup`: whether activations hold still over widths and depths, with the rule and without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.storage import atomic_write
from flopsfit_ds.cli.options import AllowImport, Overrides, SpecArgument, read_spec
from flopsfit_ds.cli.prose import say

if TYPE_CHECKING:
    from flopsfit_ds.study.probes.coordinates import Coordinates


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("check-mup")
    def check_mup(  # pyright: ignore[reportUnusedFunction]
        spec: SpecArgument,
        overrides: Overrides = None,
        allow_import: AllowImport = None,
        widths: Annotated[str, typer.Option(metavar="N,N,...", help="Widths; without it, around the base's.")] = "",
        depths: Annotated[str, typer.Option(metavar="N,N,...", help="Layers; without it, from the base's on.")] = "",
        steps: Annotated[int, typer.Option(min=1, max=1000, help="Optimiser steps of each model.")] = 4,
        seeds: Annotated[int, typer.Option(min=1, max=100, help="Seeds that are averaged.")] = 2,
        figure: Annotated[Path | None, typer.Option("--figure", help="Write a figure (SVG) to this.")] = None,
    ) -> None:
        """Train the model for a few steps at several widths and depths, with `training.mup` and without.

        With the rule activations move as far at every size; where they do not, the exit code is 1. Runs on the CPU.

        Example: flopsfit-ds check-mup spec.yaml --widths 64,128,256 --figure check.svg
        """
        from flopsfit_ds.study.probes.mup import FALL, RISE, check_spec

        loaded, folder = read_spec(spec, overrides)
        found = check_spec(
            loaded,
            spec_folder=folder,
            widths=_sizes(widths, "--widths"), depths=_sizes(depths, "--depths"), num_steps=steps, num_seeds=seeds,
            allow_import=tuple(allow_import or ()),
        )  # fmt: skip
        say(
            f"root mean square of what each coordinate moved by in {steps} steps at a rate of {found.learning_rate:g}; "
            f"the last column is its exponent, which the rule keeps between {FALL:g} and {RISE:g}"
        )
        for ruled, plain in found.pairs:
            _print(ruled, plain)
        if figure is not None:
            from flopsfit_ds.report.figures.curve_figures import coordinates_figure
            from flopsfit_ds.report.figures.svg import rendered

            (drawn,), _ = rendered(lambda: [coordinates_figure(found.pairs)])
            atomic_write(figure, drawn.standalone)
        if found.drifting:
            say(f"with the rule, sizes drift: {'; '.join(found.drifting)}")
            raise typer.Exit(1)
        say("with the rule, all hold still")


def _print(ruled: Coordinates, plain: Coordinates) -> None:
    """A line an activation."""
    print(f"\n{ruled.over:>9s}              " + "".join(f"{value:>9d}" for value in ruled.values) + "  exponent")
    for found, words in ((ruled, "with"), (plain, "without")):
        for name, changes in found.changes.items():
            cells = "".join(f"{change:9.4f}" for change in changes)
            print(f"{words:>9s}  {name:12s}{cells}  {found.slope(name):+8.2f}")


def _sizes(text: str, flag: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise PlanError(f"{flag}: {text!r} is no list of whole numbers, such as 64,128,256") from error
    if any(each < 1 for each in found):
        raise PlanError(f"{flag}: {text}: sizes start at 1")
    return found

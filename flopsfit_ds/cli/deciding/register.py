"""`register`: write a forecast down before the run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.cli.options import AsJson, fit_file, print_json, quantity
from flopsfit_ds.cli.prose import say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("register")(register_command)


def register_command(
    path: Annotated[
        Path, typer.Argument(metavar="FIT.JSON", help="Written by flopsfit-ds fit -o; a sweep folder holds one.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; never one that exists.")],
    compute: Annotated[str | None, typer.Option(help="FLOPs of the run, such as 1e23.")] = None,
    num_params: Annotated[str | None, typer.Option(help="Its parameters, such as 70B.")] = None,
    num_tokens: Annotated[str | None, typer.Option(help="Its training tokens, such as 1.4T.")] = None,
    level: Annotated[
        list[float] | None, typer.Option(help="Level of an interval; may be given several times; .5 .8 .9 .95 without.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register a forecast before the run: centre, intervals, all it rests on, and a digest that shows changes.

    Example: flopsfit-ds register outputs/my-study --compute 1e24 -o forecast.json
    """
    from flopsfit_ds.decide.forecasts.registered import LEVELS, register_forecast

    registered = register_forecast(
        fit_file(path),
        None if compute is None else quantity(compute, "--compute"),
        num_params=None if num_params is None else quantity(num_params, "--num-params"),
        num_tokens=None if num_tokens is None else quantity(num_tokens, "--num-tokens"),
        levels=level or LEVELS,
    )
    registered.write(output)
    if as_json:
        print_json({"file": str(output), "digest": registered.digest, "forecast": asdict(registered.forecast)})
        return
    forecast = registered.forecast
    say(
        f"registered at {forecast.made_at}: loss {forecast.loss:.4f} at {format_flops(forecast.compute)} FLOPs (N "
        f"{format_count(forecast.num_params)}, D {format_count(forecast.num_tokens)}), {forecast.extrapolation:.3g} "
        "times the largest run"
    )
    for band in forecast.intervals:
        say(f"  {band.level:4.0%} interval {band.low:.4f} to {band.high:.4f}")
    print(f"{output}:\n{registered.digest}")
    say(
        "the digest shows that the file was changed, not who wrote it: publish it now, and flopsfit-ds score "
        f"{output} --loss MEASURED --digest DIGEST holds the file to it"
    )

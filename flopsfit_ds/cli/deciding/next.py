"""`next`: which runs to train next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_count, format_flops, format_seconds
from flopsfit_ds.cli.fitting.tables import print_rows
from flopsfit_ds.cli.options import AsJson, given_files, quantity
from flopsfit_ds.cli.prose import say

if TYPE_CHECKING:
    from flopsfit_ds.decide.choosing.choose import Errors, NextRuns
    from flopsfit_ds.decide.sources import Source


_HEADINGS = ("", "purpose", "N", "D", "FLOPs", "GPU h", "GPUs", "starts", "\u00b1N*", "\u00b1D*", "\u00b1loss")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("next")(next_command)


def next_command(
    data: Annotated[list[Path], typer.Argument(help="Runs so far: tables, sweep folders, fits; - is standard input.")],
    gpu_hours: Annotated[float, typer.Option(help="What may be spent on the batch.")],
    target: Annotated[
        str | None,
        typer.Option(help="FLOPs of the run to plan; else the sweep's own, or ten times the largest."),
    ] = None,
    gpus: Annotated[int, typer.Option(help="GPUs side by side: all runs end within GPU-hours over GPUs.")] = 1,
    flops_per_second: Annotated[
        str | None,
        typer.Option(help="FLOP/s of one GPU in training, such as 4e14; without it what the runs of a sweep took."),
    ] = None,
    most_runs: Annotated[int, typer.Option(help="Of the batch.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Choose the runs to train next: the most certainty of N*, D* and loss at the target for each GPU-hour.

    Example: flopsfit-ds next outputs/my-study --gpu-hours 500 --target 1e24
    """
    from flopsfit_ds.decide.choosing.choose import choose_next
    from flopsfit_ds.decide.choosing.sizes import sizes_to_be_had
    from flopsfit_ds.decide.sources import plan_beside, read_sources

    with given_files(data) as files:
        source = read_sources(files)
        plan = plan_beside(files[0]) if len(files) == 1 else None
    own = None if plan is None else plan.spec.fit.target_compute
    speed = _speed(source) if flops_per_second is None else quantity(flops_per_second, "--flops-per-second")
    found = choose_next(
        source.points,
        gpu_hours * 3600.0,
        speed,
        target_compute=own if target is None else quantity(target, "--target"),
        gpus=gpus,
        most_runs=most_runs,
        sizes=None if plan is None else sizes_to_be_had(plan),
    )
    if as_json:
        print(json.dumps({**found.to_json_dict(), "flops_per_second": speed}, allow_nan=False))
    else:
        _print_next(found, speed)


def _speed(source: Source) -> float:
    speed = source.flops_per_second()
    if speed is None:
        raise FitError(
            f"{source.name} does not say how long its runs took: give --flops-per-second, what one GPU does in "
            "training, such as 4e14 for an H100 at 40%"
        )
    return speed


def _told(errors: Errors) -> tuple[str, ...]:
    return (f"{errors.log_num_params:.1%}", f"{errors.log_num_tokens:.1%}", f"{errors.log_loss:.2%}")


def _print_next(found: NextRuns, speed: float) -> None:
    say(
        f"target {format_flops(found.target_compute)} FLOPs: N* {format_count(found.num_params)}, D* "
        f"{format_count(found.num_tokens)}, loss {found.loss:.4f} as it is believed now"
    )
    rows = [("now", *7 * ("",), *_told(found.before))]
    for number, run in enumerate(found.runs, start=1):
        cells = (
            str(number),
            run.purpose,
            format_count(run.num_params),
            format_count(run.num_tokens),
            format_flops(run.compute),
            f"{run.gpu_seconds / 3600:.3g}",
            "" if found.gpus == 1 else str(run.gpus),
            format_seconds(run.start_seconds),
        )
        rows.append((*cells, *_told(run.after)))
    columns = [k for k, name in enumerate(_HEADINGS) if name != "GPUs" or found.gpus > 1]
    print_rows([_HEADINGS[k] for k in columns], [[row[k] for k in columns] for row in rows])
    say(
        f"{len(found.runs)} runs of {found.num_candidates} candidates, {found.gpu_seconds / 3600:.3g} GPU-hours at "
        f"{format_flops(speed)} FLOP/s, all done after {format_seconds(found.wall_seconds)} on {found.gpus} "
        f"{'GPU' if found.gpus == 1 else 'GPUs'}"
    )
    if any(run.purpose == "tuning" for run in found.runs):
        say("tuning: half and twice the learning rate at that place; is the loss there as low as it can be?")
    say(
        "\u00b1N*, \u00b1D*, \u00b1loss: what is not known of them after each run, as standard errors of logarithms, "
        "if one of the forms of law is right; fit again after the batch"
    )

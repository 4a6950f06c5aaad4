"""`score`: where the measured losses fell in their forecasts, and what all forecasts together are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopsfit_ds.base.errors import DataError, FitError, RecordError
from flopsfit_ds.base.units import format_flops
from flopsfit_ds.cli.fitting.tables import print_rows
from flopsfit_ds.cli.options import quantity, require_writable, write_text
from flopsfit_ds.cli.prose import say

if TYPE_CHECKING:
    from flopsfit_ds.decide.forecasts.scoring import ScoreTable

_MOST_RUNNING = 40  # one screen


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("score")(score_command)


def score_command(
    forecasts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FORECAST.JSON[=LOSS]]...", help="Registered forecasts; those of --results without."),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Measured loss, where there is one forecast.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="CSV or JSONL with columns `forecast` (its file) and `loss`, for many.")
    ] = None,
    digest: Annotated[
        list[str] | None,
        typer.Option(help="A digest as it was published; where any is given, every forecast must have one of them."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Write a figure to this file, as SVG.")] = None,
) -> None:
    """Score registered forecasts against measured losses: where each fell, coverage, sharpness, CRPS.

    Example: flopsfit-ds score forecast.json --loss 2.31
    """
    from flopsfit_ds.decide.forecasts.registered import load_forecast
    from flopsfit_ds.decide.forecasts.scoring import score_forecast, summarise

    require_writable(figure)
    measured = _measured(forecasts or [], loss, results)
    scored = []
    for path, value in measured.items():
        registered = load_forecast(path)
        if digest and registered.digest not in digest:
            raise RecordError(
                f"{path}: its digest is {registered.digest}, which is none of the {len(digest)} that were published"
            )
        scored.append(score_forecast(registered, value, path.name))
    table = summarise(scored)
    if figure is not None:
        from flopsfit_ds.report.figures.score_figure import score_figure
        from flopsfit_ds.report.figures.svg import rendered

        (drawn,), _ = rendered(lambda: [score_figure(table)])
        write_text(figure, drawn.standalone)
    if as_json:
        print(json.dumps(table.to_json_dict(), allow_nan=False))
    else:
        _print_scores(table)


def _measured(forecasts: list[str], loss: str | None, results: Path | None) -> dict[Path, float]:
    """The loss of each forecast's run, from wherever it was given."""
    known = {} if results is None else _results(results)
    if not forecasts:
        return known
    found: dict[Path, float] = {}
    for text in forecasts:
        path, given = Path(text), None
        if not path.exists() and "=" in text:
            name, _, value = text.rpartition("=")
            path, given = Path(name), quantity(value, text)
        choices = [
            value
            for value in (given, None if loss is None else quantity(loss, "--loss"), known.get(path.resolve()))
            if value is not None
        ]
        if loss is not None and len(forecasts) > 1:
            raise FitError(f"--loss is for one forecast, got {len(forecasts)}: write {path}=LOSS for each")
        if len(choices) != 1:
            raise FitError(
                f"{path}: {len(choices)} measured losses were given; write {path}=2.234, or a row of --results"
            )
        if path in found:
            raise FitError(f"{path} was given twice")
        found[path] = choices[0]
    return found


def _results(path: Path) -> dict[Path, float]:
    """Forecast file -> loss; names are relative to the table's folder."""
    from flopsfit_ds.fit.points.columns import read_number
    from flopsfit_ds.fit.points.reading import read_rows

    found: dict[Path, float] = {}
    for number, row in enumerate(read_rows(path), start=1):
        if not {"forecast", "loss"} <= row.keys():
            raise DataError(f"{path}, row {number}: columns `forecast` and `loss` are needed, got {', '.join(row)}")
        try:
            value = read_number(row["loss"])
        except ValueError as error:
            raise DataError(f"{path}, row {number}: loss {error}") from error
        if value is not None:
            found[(path.parent / str(row["forecast"])).resolve()] = value
    return found


def _print_scores(table: ScoreTable) -> None:
    levels = [level.level for level in table.levels]
    headings = ["forecast", "registered", "FLOPs", "ahead", "said", "measured", "error", "at"]
    headings += [f"{level:.0%}" for level in levels] + ["CRPS so far"]
    rows = []
    pairs = list(zip(table.rows, table.running, strict=True))
    for row, run in pairs[-_MOST_RUNNING:]:
        inside = {hit.level: "in" if hit.inside else "OUT" for hit in row.hits}
        place = (row.name, row.made_at, format_flops(row.compute), f"{row.extrapolation:.3g}x")
        found = (f"{row.predicted:.4f}", f"{row.measured:.4f}", f"{row.error:+.2%}", f"{row.quantile:.0%}")
        rows.append((*place, *found, *(inside.get(level, "-") for level in levels), f"{run.crps:.3%}"))
    print_rows(headings, rows)
    if len(pairs) > _MOST_RUNNING:
        say(f"({len(pairs) - _MOST_RUNNING} earlier ones are not shown; --json has all)")
    last = table.running[-1]
    say(
        f"{last.count} scored: mean CRPS {last.crps:.3%} of the loss, mean size of the error "
        f"{last.absolute_error:.2%}, mean error {last.bias:+.2%}"
    )
    for level in table.levels:
        low, high = level.expected
        say(
            f"  {level.level:4.0%} intervals: {level.inside} of {level.count} held ({level.inside / level.count:.0%}; "
            f"{low} to {high} would be no surprise: {level.verdict}), mean width {level.width:.2%}, interval score "
            f"{level.score:.2%}"
        )

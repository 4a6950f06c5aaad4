"""`laws`: forms of law with a further column, compared by error on runs held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopsfit_ds.base.errors import DataError, FitError
from flopsfit_ds.base.units import format_ratio
from flopsfit_ds.cli.fitting.several import print_left_out, show_accuracy, show_losses
from flopsfit_ds.cli.fitting.tables import print_rows
from flopsfit_ds.cli.fitting.tuning import show_tuning
from flopsfit_ds.cli.options import AsJson, quantity
from flopsfit_ds.cli.prose import say
from flopsfit_ds.spec.fit_options import DEFAULTS

if TYPE_CHECKING:
    from flopsfit_ds.fit.further.forms import ColumnFit

_COLUMN = "Column that holds this quantity, where its name is not a common one."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("laws")(laws_command)


def laws_command(
    data: Annotated[Path, typer.Argument(help="A table: CSV, JSONL, Parquet or a tracker's export.")],
    family: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Families of models: one law, shared exponents, or own ones.")
    ] = None,
    total_params: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Total parameters of mixtures of experts; N counts active."),
    ] = None,
    bits: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Bits of the weights in training: effective parameters.")
    ] = None,
    losses: Annotated[
        str | None, typer.Option(metavar="COLUMN,COLUMN", help="Several losses of the same runs: a law for each.")
    ] = None,
    accuracy: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Accuracy of a task, 0 to 1: a sigmoid of the loss.")
    ] = None,
    chance: Annotated[float | None, typer.Option(help="Its accuracy of guessing, such as 0.25.")] = None,
    tuning: Annotated[
        str | None,
        typer.Option(metavar="COLUMN,COLUMN", help="A tuning grid: columns of the learning rate and the batch."),
    ] = None,
    num_params: Annotated[str | None, typer.Option(help="Predict the loss at this size, such as 70B.")] = None,
    num_tokens: Annotated[str | None, typer.Option(help="Tokens of the run to predict.")] = None,
    value: Annotated[str | None, typer.Option(help="Its family, total parameters or bits.")] = None,
    level: Annotated[float, typer.Option(help="Probability of the intervals.")] = DEFAULTS.level,
    num_params_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    num_tokens_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    flops_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    loss_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    as_json: AsJson = False,
) -> None:
    """Laws that use further columns: families, experts, bits, several losses, a task's accuracy, or a tuning grid.

    Example: flopsfit-ds laws experts.csv --total-params params_total --num-params 1B --num-tokens 20B --value 8B
    """
    asked = {"family": family, "total-params": total_params, "bits": bits, "losses": losses, "accuracy": accuracy}
    asked["tuning"] = tuning
    given = [(kind, column) for kind, column in asked.items() if column is not None]
    if len(given) != 1:
        raise FitError(f"give one of {', '.join('--' + kind for kind in asked)} with the column that holds it")
    kind, column = given[0]
    spelt = {
        "num_params": num_params_column,
        "num_tokens": num_tokens_column,
        "flops": flops_column,
        "loss": loss_column,
    }
    named = {name: where for name, where in spelt.items() if where is not None}
    if data.is_dir():
        raise DataError(f"{data} is a folder: give its results.csv, or another table with a column {column!r}")
    if kind in ("losses", "accuracy", "tuning"):
        at = _sizes(num_params, num_tokens)
        if kind == "accuracy":
            show_accuracy(data, column, chance, named, at, level, as_json)
        else:
            show = show_losses if kind == "losses" else show_tuning
            show(data, [part.strip() for part in column.split(",") if part.strip()], named, at, level, as_json)
        return
    wanted = [num_params, num_tokens, value]
    if any(part is not None for part in wanted) and None in wanted:
        raise FitError("to predict, give --num-params, --num-tokens and --value together")
    _show_column(data, column, kind, named, wanted, level, as_json)


def _sizes(num_params: str | None, num_tokens: str | None) -> tuple[float, float] | None:
    if num_params is None and num_tokens is None:
        return None
    if num_params is None or num_tokens is None:
        raise FitError("to predict, give --num-params and --num-tokens together")
    return quantity(num_params, "--num-params"), quantity(num_tokens, "--num-tokens")


def _show_column(
    data: Path,
    column: str,
    kind: str,
    named: dict[str, str],
    wanted: list[str | None],
    level: float,
    as_json: bool,
) -> None:
    from flopsfit_ds.fit import fit_column
    from flopsfit_ds.fit.further.tables import read_with_column

    num_params, num_tokens, value = wanted
    table = read_with_column(data, column, kind, named)
    fit = fit_column(table.points, table.values, kind, level=level)
    content = {**fit.to_json_dict(), "excluded": [vars(gone) for gone in table.excluded]}
    predicted = None
    if num_params is not None and num_tokens is not None and value is not None:
        own = value if kind == "family" else quantity(value, "--value")
        predicted = fit.predict(quantity(num_params, "--num-params"), quantity(num_tokens, "--num-tokens"), own)
        content["prediction"] = {**vars(predicted), "interval": vars(predicted.interval)}
    if as_json:
        print(json.dumps(content, allow_nan=False))
        return
    _print_forms(fit)
    if predicted is not None:
        say(
            f"loss {predicted.loss:.4f}; {level:.0%} interval of one run {predicted.interval.low:.4f} to "
            f"{predicted.interval.high:.4f}, at {format_ratio(predicted.extrapolation)} times the largest compute; the "
            f"width rests on {predicted.rests_on}"
        )
    print_left_out(table.excluded)


def _print_forms(fit: ColumnFit) -> None:
    say(f"{fit.num_points} runs; {fit.kind.words}" + (f": {', '.join(fit.groups)}" if fit.groups else ""))
    errors = ["not known" if form.held_out_error is None else f"{form.held_out_error:.2%}" for form in fit.forms]
    rows = [
        (form.name, str(form.num_parameters), error, f"{form.residual:.2%}")
        for form, error in zip(fit.forms, errors, strict=True)
    ]
    print_rows(("form", "parameters", "held-out error", "residual"), rows)
    for name, why in fit.skipped.items():
        say(f"  {name}: left out: {why}")
    say(fit.why)
    for form in fit.forms:
        if form.name != fit.chosen:
            continue
        say(f"{form.formula}   ({form.source})")
        for name, number in form.parameters.items():
            ends = form.intervals.get(name)
            told = "" if ends is None else f"  {fit.level:.0%} {ends.low:.4g} to {ends.high:.4g}"
            say(f"  {name:10s} {number:.4g}{told}")
        if form.at_bound:
            say(f"  {', '.join(form.at_bound)} ended on a bound: these runs do not determine it")

"""Commands of the fit: fit, predict."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_count, format_flops, format_ratio
from flopsfit_ds.cli.fitting.tables import print_table
from flopsfit_ds.cli.options import (
    fit_file,
    given_files,
    quantity,
    require_writable,
    write_text,
)
from flopsfit_ds.cli.prose import say, say_warnings
from flopsfit_ds.spec.fit_options import (
    DEFAULT_COUNT,
    DEFAULTS,
    LossName,
    ParameterCount,
    Resampling,
    count_in_words,
)

if TYPE_CHECKING:
    from flopsfit_ds.fit.forecast.isoflop import IsoflopDiagnostics
    from flopsfit_ds.fit.forecast.optimum import ServingOptimum
    from flopsfit_ds.fit.forecast.prediction import Prediction
    from flopsfit_ds.fit.points.points import Exclusion, Point
    from flopsfit_ds.fit.result import ScalingFit

_DEFAULT = "without it what a sweep folder's spec says, else"
_WITHIN_DATA = 1.1  # times the largest compute: less than the width of one budget (`isoflop._BUDGET_WIDTH`)
_COLUMN = "Column that holds this quantity, where its name is not a common one."


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("fit")(fit_command)
    app.command("predict")(predict_command)


def fit_command(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Tables (CSV, JSONL, Parquet, exports of trackers; - is standard input), sweeps, fits: as one."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the fit as JSON.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSON to this file as well.")] = None,
    law: Annotated[str | None, typer.Option(help=f"Form of the law; {_DEFAULT} {DEFAULTS.law}.")] = None,
    loss: Annotated[
        str | None, typer.Option(help=f"{', '.join(get_args(LossName))}; {_DEFAULT} {DEFAULTS.loss}.")
    ] = None,
    huber_delta: Annotated[
        float | None,
        typer.Option(help=f"Where the Huber loss turns from square to linear; {_DEFAULT} {DEFAULTS.huber_delta:g}."),
    ] = None,
    bootstrap: Annotated[
        str | None,
        typer.Option(help=f"What is resampled: {', '.join(get_args(Resampling))}; {_DEFAULT} {DEFAULTS.bootstrap}."),
    ] = None,
    bootstrap_samples: Annotated[
        int | None, typer.Option(help=f"Resamples; 0 for none; {_DEFAULT} {DEFAULTS.bootstrap_samples}.")
    ] = None,
    level: Annotated[
        float | None, typer.Option(help=f"Probability of the intervals; {_DEFAULT} {DEFAULTS.level}.")
    ] = None,
    target_compute: Annotated[str | None, typer.Option(help="FLOPs of the run to predict, such as 1e24.")] = None,
    loss_floor: Annotated[
        float | None, typer.Option(help="The floor E where it is known, such as the entropy of the text.")
    ] = None,
    inference_tokens: Annotated[
        str | None, typer.Option(help="Tokens the model will serve: adds the optimum of training and serving.")
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(help=f"N of a sweep folder: {' or '.join(get_args(ParameterCount))}; {_DEFAULT} {DEFAULT_COUNT}."),
    ] = None,
    drop_highest_losses: Annotated[int, typer.Option(help="Leave out this many rows with the highest losses.")] = 0,
    num_params_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    num_tokens_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    flops_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    loss_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    seed_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    learning_rate_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    label_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    unique_tokens_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    compute_budget_flops_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
    global_batch_column: Annotated[str | None, typer.Option(help=_COLUMN)] = None,
) -> None:
    """Fit a scaling law to finished runs.

    Example: flopsfit-ds fit runs.csv --target-compute 1e24 -o fit.json
    """
    from flopsfit_ds.decide.sources import plan_beside, read_sources
    from flopsfit_ds.spec import Fit

    require_writable(output)
    named = {
        "num_params": num_params_column,
        "num_tokens": num_tokens_column,
        "flops": flops_column,
        "loss": loss_column,
        "seed": seed_column,
        "learning_rate": learning_rate_column,
        "label": label_column,
        "unique_tokens": unique_tokens_column,
        "compute_budget_flops": compute_budget_flops_column,
        "global_batch": global_batch_column,
    }
    given = {
        "law": law,
        "loss": loss,
        "huber_delta": huber_delta,
        "bootstrap": bootstrap,
        "bootstrap_samples": bootstrap_samples,
        "level": level,
        "target_compute": None if target_compute is None else quantity(target_compute, "--target-compute"),
        "loss_floor": loss_floor,
    }
    with given_files(data) as files:
        plan = plan_beside(files[0])
        source = read_sources(files, {k: v for k, v in named.items() if v is not None}, parameters)
    options = (Fit() if plan is None else plan.spec.fit).for_points()
    options |= {name: value for name, value in given.items() if value is not None}
    points, excluded = _drop_highest(list(source.points), list(source.excluded), drop_highest_losses)
    served = None if inference_tokens is None else quantity(inference_tokens, "--inference-tokens")
    fit = _fit_or_show_valleys(points, excluded, as_json, options).counting(source.parameters)
    if served is not None and not fit.optima:
        raise FitError(f"the fitted {fit.law.form} law has no compute-optimal size, so none for serving either")
    _show_fit(fit, None if served is None else fit.serving_optimum(fit.optima[-1].compute, served), as_json, output)


def _fit_or_show_valleys(
    points: list[Point], excluded: list[Exclusion], as_json: bool, options: dict[str, Any]
) -> ScalingFit:
    """The fit; where no law can be fitted, what the isoFLOP budgets say is shown before the error."""
    from flopsfit_ds.fit import fit_scaling_law, isoflop_minima
    from flopsfit_ds.fit.checks.warnings import budget_warnings

    try:
        return fit_scaling_law(points, excluded=excluded, **options)
    except FitError:
        if not as_json:
            valleys = isoflop_minima(points)
            _print_optima(valleys, None)
            say_warnings(budget_warnings(points, valleys))
        raise


def _show_fit(fit: ScalingFit, serving: ServingOptimum | None, as_json: bool, output: Path | None) -> None:
    content = fit.to_json_dict()
    if serving is not None:
        content["serving_optimum"] = asdict(serving)
    if output is not None:
        write_text(output, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if as_json:
        print(json.dumps(content, allow_nan=False))
    else:
        _print_fit(fit, serving)


def predict_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FIT.JSON", help="Written by flopsfit-ds fit -o; a sweep folder, or - for standard input."
        ),
    ],
    compute: Annotated[list[str] | None, typer.Option(help="FLOPs, such as 1e24; may be given several times.")] = None,
    num_params: Annotated[str | None, typer.Option(help="Parameters, such as 70B.")] = None,
    num_tokens: Annotated[str | None, typer.Option(help="Training tokens, such as 1.4T.")] = None,
    unique_tokens: Annotated[
        str | None, typer.Option(help="Distinct ones among them, where data repeats; without it all are fresh.")
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="Probability of the interval; that of the fit by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict the loss of a larger run, with a calibrated interval.

    Example: flopsfit-ds predict outputs/quickstart --compute 1e14
    """
    from flopsfit_ds.fit import load_prediction_model
    from flopsfit_ds.fit.result import load_count, load_warnings

    with given_files([path]) as (given,):
        found_in = fit_file(given)
        model, warnings, counted = load_prediction_model(found_in), load_warnings(found_in), load_count(found_in)
    n = None if num_params is None else quantity(num_params, "--num-params")
    d = None if num_tokens is None else quantity(num_tokens, "--num-tokens")
    u = None if unique_tokens is None else quantity(unique_tokens, "--unique-tokens")
    budgets = [quantity(text, "--compute") for text in compute or []]
    if n is not None and d is not None and budgets:
        raise FitError("give --compute, or --num-params and --num-tokens, not all three")
    if not budgets and (n is None or d is None):
        raise FitError("give --compute, such as 1e24, or both --num-params and --num-tokens")
    if budgets:
        found = [model.predict(budget, num_params=n, num_tokens=d, unique_tokens=u, level=level) for budget in budgets]
    else:
        found = [model.predict(num_params=n, num_tokens=d, unique_tokens=u, level=level)]
    if as_json:
        told = [asdict(warning) for warning in warnings]
        dicts = [{**prediction.to_json_dict(), "parameters": counted, "warnings": told} for prediction in found]
        print(json.dumps(dicts[0] if len(dicts) == 1 else dicts, allow_nan=False))
        return
    for prediction in found:
        _print_prediction(prediction)
    if counted is not None:
        say(f"  N counts {count_in_words(counted)}")
    say_warnings(warnings, "warning of the fit,")


def _drop_highest(points: list[Point], excluded: list[Exclusion], count: int) -> tuple[list[Point], list[Exclusion]]:
    from flopsfit_ds.fit.points.points import Exclusion

    if count < 0:
        raise FitError(f"--drop-highest-losses is a number of rows, got {count}")
    finite = [p for p in points if math.isfinite(p.loss)]
    worst = sorted(finite, key=lambda p: p.loss)[len(finite) - min(count, len(finite)) :]
    gone = {id(p) for p in worst}
    why = f"one of the {count} highest losses, left out on request"
    dropped = [Exclusion(p.row, p.label or p.run_id, why) for p in worst]
    return [p for p in points if id(p) not in gone], [*excluded, *dropped]


def _print_fit(fit: ScalingFit, serving: ServingOptimum | None) -> None:
    from flopsfit_ds.report.law_tables import law_table

    law = fit.law
    left_out = sum(not each.of_source for each in fit.excluded)
    say(f"{law.form}: {law.formula}   ({len(fit.points)} points, {left_out} left out)")
    print_table(law_table(fit))
    c = fit.certificate
    say(
        f"  objective {fit.objective:.8g}; {c.best_share:.0%} of {c.starts} starts reached it, "
        f"{c.distinct_minima} distinct {'minimum' if c.distinct_minima == 1 else 'minima'}, gradient "
        f"{c.gradient_norm:.1e}"
    )
    say(f"  compute: {fit.audit.compute_rule}")
    if fit.audit.parameters is not None:
        say(f"  N counts {count_in_words(fit.audit.parameters)}")
    if fit.audit.largest_weight is not None:
        say(f"  points are weighted by the errors of their losses, 1 to {fit.audit.largest_weight:.3g}")
    _print_optima(fit.isoflop, fit)
    if serving is not None:
        say(
            f"to serve {format_count(serving.inference_tokens)} tokens at loss {serving.loss:.4f}: "
            f"N {format_count(serving.num_params)}, D {format_count(serving.num_tokens)}, training "
            f"{format_flops(serving.training_compute)} FLOPs, {serving.saving:.0%} of all FLOPs saved"
        )
    if fit.optima or fit.prediction.ray is not None:
        _print_prediction(fit.predict(fit.target_compute))
    for exclusion in fit.excluded:
        if exclusion.of_source:
            say(f"read: {exclusion.reason}")
            continue
        where = f"row {exclusion.row}" if exclusion.row is not None else "a point"
        say(f"left out: {where}{' ' + exclusion.name if exclusion.name else ''}: {exclusion.reason}")
    say_warnings(fit.warnings)


def _print_prediction(prediction: Prediction) -> None:
    run = prediction.interval
    say(
        f"predicted at {format_flops(prediction.compute)} FLOPs (N {format_count(prediction.num_params)}, "
        f"D {format_count(prediction.num_tokens)}): loss {prediction.loss:.4f}; {prediction.level:.0%} prediction "
        f"interval of one run {run.low:.4f} to {run.high:.4f}{_beyond(prediction.extrapolation)}"
    )
    say(
        f"  the {prediction.law} law alone says {prediction.law_loss:.4f} (weight {prediction.law_weight:.0%}); "
        f"the width rests on {prediction.rests_on}"
    )
    if prediction.unique_tokens is not None:
        say(f"  {format_count(prediction.unique_tokens)} of the tokens are unique")
        if prediction.unbounded:
            say(
                f"  these runs set no upper bound on {' and '.join(prediction.unbounded)}: how fast repeats lose their "
                "worth is not known, it may be not at all; runs with more repeats would tell"
            )
    elif prediction.assumes_fresh:
        say("  all tokens are taken to be fresh: predict --unique-tokens says what repeats cost")


def _beyond(extrapolation: float) -> str:
    if extrapolation <= _WITHIN_DATA:
        return ""
    return f"; {format_ratio(extrapolation)} times the largest compute that was measured"


def _print_optima(isoflop: IsoflopDiagnostics, fit: ScalingFit | None) -> None:
    """The optimum at each budget, by its own valley and by the law, and the powers of C that they follow."""
    from flopsfit_ds.report.law_tables import frontier_sentence, optima_table

    table = optima_table(isoflop, fit)
    if table.rows:
        say("compute-optimal, by isoFLOP minima" + (" and by the law:" if fit is not None and fit.optima else ":"))
        print_table(table)
    if fit is not None and fit.frontier is not None:
        say(f"  {frontier_sentence(fit.frontier)}")
    for name, power in (("isoFLOP valleys", isoflop.size_law), ("envelope", isoflop.envelope_law)):
        if power is not None:
            error = "" if power.standard_error is None else f" +- {power.standard_error:.3f}"
            say(f"  {name}: N* ~ C^{power.exponent:.3f}{error}")

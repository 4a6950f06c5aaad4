"""`laws` with several losses, or with a task's accuracy: what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.cli.fitting.tables import print_rows
from flopsfit_ds.cli.options import print_json
from flopsfit_ds.cli.prose import say

if TYPE_CHECKING:
    from flopsfit_ds.fit.further.domains import LawOfLoss
    from flopsfit_ds.fit.points.points import Exclusion


def show_accuracy(
    data: Path,
    column: str,
    chance: float | None,
    named: Mapping[str, str],
    at: tuple[float, float] | None,
    level: float,
    as_json: bool,
) -> None:
    """Both steps from size and tokens to a task's accuracy.

    Raises:
        FitError: No chance level is given, or the runs do not carry such a law.
    """
    from flopsfit_ds.fit.further.accuracy import fit_accuracy
    from flopsfit_ds.fit.further.tables import read_with_column

    if chance is None:
        raise FitError("--accuracy needs --chance, the accuracy of guessing: 0.25 of four choices, 0 of free answers")
    table = read_with_column(data, column, "accuracy", named)
    fit = fit_accuracy(table.points, [float(value) for value in table.values], chance, level=level)
    told = None if at is None else fit.predict(num_params=at[0], num_tokens=at[1])
    if as_json:
        content: dict[str, Any] = {**fit.to_json_dict(), "excluded": [vars(gone) for gone in table.excluded]}
        print_json(content | ({} if told is None else {"prediction": asdict(told)}))
        return
    say(f"{fit.num_points} runs; accuracy in column {column}, chance {chance:g}")
    rows = [
        (form.name, str(len(form.parameters)), f"{form.held_out_error:.2%}", f"{form.residual:.2%}")
        for form in fit.forms
    ]
    print_rows(("form", "parameters", "held-out error", "residual"), rows)
    say(fit.why)
    for form in fit.forms:
        if form.name == fit.chosen:
            say(f"{form.formula}   ({form.source})")
            for name, value in form.parameters.items():
                say(f"  {name:3s} {value:.4g}")
    if told is not None:
        say(
            f"accuracy {told.accuracy:.1%}; {level:.0%} interval of one run {told.interval.low:.1%} to "
            f"{told.interval.high:.1%}, at a loss of {told.loss:.4f} ({told.loss_interval.low:.4f} to "
            f"{told.loss_interval.high:.4f})"
        )
    print_left_out(table.excluded)


def show_losses(
    data: Path,
    columns: Sequence[str],
    named: Mapping[str, str],
    at: tuple[float, float] | None,
    level: float,
    as_json: bool,
) -> None:
    """A law for each of several losses.

    Raises:
        FitError: No loss carries a law.
    """
    from flopsfit_ds.fit.further.domains import fit_losses, optima_differ

    laws = fit_losses(data, columns, named, level=level)
    differ = optima_differ(laws)
    if as_json:
        print_json({"losses": [_as_json(law, at) for law in laws], "optima_differ": differ})
        return
    headings = ("loss", "runs", "E", "alpha", "beta", "N* at target", "D*", "loss there")
    print_rows(headings, [_row(law) for law in laws])
    for law in laws:
        if law.fit is None:
            say(f"{law.column}: no law: {law.reason}")
        elif at is not None:
            told = law.fit.predict(num_params=at[0], num_tokens=at[1], level=level)
            say(
                f"{law.column}: loss {told.loss:.4f} at {format_count(at[0])} parameters and {format_count(at[1])} "
                f"tokens; {level:.0%} interval {told.interval.low:.4f} to {told.interval.high:.4f}"
            )
    fits = [law.fit for law in laws if law.fit is not None]
    say(f"target {format_flops(fits[0].target_compute)} FLOPs; {differ or 'intervals of N* there meet'}")
    for law in laws:
        print_left_out(law.excluded, f"{law.column}: ")


def print_left_out(excluded: Sequence[Exclusion], of: str = "") -> None:
    """Each row that entered no law, with its reason."""
    for gone in excluded:
        say(f"left out: {of}row {gone.row}{' ' + gone.name if gone.name else ''}: {gone.reason}")


def _row(law: LawOfLoss) -> tuple[str, ...]:
    fit = law.fit
    if fit is None:
        return (law.column, *("-",) * 7)
    values = [format(value, ".4g") for value in (fit.law.loss_floor, fit.law.alpha, fit.law.beta)]
    if not fit.told_optima:
        return (law.column, str(len(fit.points)), *values, "-", "-", "-")
    best = fit.told_optima[-1]
    there = (format_count(best.num_params), format_count(best.num_tokens), f"{best.loss:.4f}")
    return (law.column, str(len(fit.points)), *values, *there)


def _as_json(law: LawOfLoss, at: tuple[float, float] | None) -> dict[str, Any]:
    content = {"column": law.column, "reason": law.reason, "excluded": [vars(gone) for gone in law.excluded]}
    if law.fit is None:
        return {**content, "fit": None}
    told = None if at is None else asdict(law.fit.predict(num_params=at[0], num_tokens=at[1]))
    return {**content, "fit": law.fit.to_json_dict(), "prediction": told}

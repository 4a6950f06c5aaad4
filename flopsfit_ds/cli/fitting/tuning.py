"""`laws` over a tuning grid: what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_count
from flopsfit_ds.cli.fitting.several import print_left_out
from flopsfit_ds.cli.fitting.tables import print_rows
from flopsfit_ds.cli.options import print_json

if TYPE_CHECKING:
    from flopsfit_ds.fit.further.tuning import Optimum, TuningLaw


def show_tuning(
    data: Path,
    columns: Sequence[str],
    named: Mapping[str, str],
    at: tuple[float, float] | None,
    level: float,
    as_json: bool,
) -> None:
    """The best learning rate and batch of every size and number of tokens, and their laws.

    Raises:
        FitError: Not one or two columns, or no optimum can be told.
    """
    from flopsfit_ds.fit.further.tuning import fit_tuning, read_tuned

    if len(columns) not in (1, 2):
        raise FitError(
            f"--tuning takes the column of the learning rate and, after a comma, that of the batch; got {len(columns)}"
        )
    if len(set(columns)) < len(columns):
        raise FitError(f"--tuning: {columns[0]} is named twice; give the batch a column of its own, or leave it out")
    runs, excluded = read_tuned(data, columns[0], columns[1] if len(columns) == 2 else None, named)
    fit = fit_tuning(runs, level=level)
    if as_json:
        print_json(
            {
                "optima": [asdict(optimum) for optimum in fit.optima],
                "laws": [_as_json(law, at) for law in fit.laws],
                "excluded": [vars(gone) for gone in excluded],
            }
        )
        return
    settings = [law.setting for law in fit.laws]
    rows = [_row(optimum, settings) for optimum in fit.optima]
    print_rows(("N", "D", "runs", *(f"best {name}" for name in settings)), rows)
    for law in fit.laws:
        _print_law(law, fit.optima, at)
    print_left_out(excluded)


def _row(optimum: Optimum, settings: Sequence[str]) -> tuple[str, ...]:
    edges = {name: f" ({edge})" for name, edge in optimum.edges.items()}
    told = [f"{optimum.best[name]:.4g}{edges.get(name, '')}" for name in settings]
    return (format_count(optimum.num_params), format_count(optimum.num_tokens), str(optimum.runs), *told)


def _print_law(law: TuningLaw, optima: Sequence[Optimum], at: tuple[float, float] | None) -> None:
    from flopsfit_ds.fit.further.tuning import TOO_FEW

    few = sum(optimum.edges.get(law.setting) == TOO_FEW for optimum in optima)
    outside, num_optima = len(optima) - law.num_inside - few, len(optima)
    if few:
        print(
            f"{law.setting}: {few} of {num_optima} pairs of N and D were run at fewer than three of its values and are "
            "in no law: give runs at others"
        )
    if outside:
        print(
            f"{law.setting}: {outside} of {num_optima} optima lie at the edge of their grid or beyond, and are in no "
            "law: widen the grid there"
        )
    if law.law is None:
        print(f"{law.setting}: no law: {law.reason}")
        return
    told = "; ".join(
        f"exponent of {name} {value:.4g}, {law.level:.0%} {ends.low:.4g} to {ends.high:.4g}"
        for name, (value, ends) in law.exponents.items()
    )
    print(f"{law.setting} = {law.law.formula}: {told or 'neither N nor D varies'}   ({law.law.source})")
    print(f"  {law.num_inside} optima scatter about it by {law.law.scatter:.1%}")
    if at is not None:
        best, ends = law.predict(*at)
        print(
            f"  best {law.setting} at {format_count(at[0])} parameters and {format_count(at[1])} tokens {best:.4g}; "
            f"{law.level:.0%} interval {ends.low:.4g} to {ends.high:.4g}"
        )


def _as_json(law: TuningLaw, at: tuple[float, float] | None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "setting": law.setting,
        "formula": None if law.law is None else law.law.formula,
        "reason": law.reason,
        "num_inside": law.num_inside,
        "scatter": None if law.law is None else law.law.scatter,
        "exponents": {n: {"value": v, "interval": asdict(ends)} for n, (v, ends) in law.exponents.items()},
    }
    if at is not None and law.law is not None:
        best, ends = law.predict(*at)
        content["prediction"] = {"best": best, "interval": asdict(ends)}
    return content

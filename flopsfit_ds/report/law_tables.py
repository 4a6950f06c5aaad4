"""Tables of a law, written once for the page and the terminal: its parameters, and the optimum at each budget."""

from __future__ import annotations

import math

from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.fit.forecast.isoflop import BudgetMinimum, IsoflopDiagnostics
from flopsfit_ds.fit.forecast.optimum import Optimum
from flopsfit_ds.fit.forecast.parts.frontier import FrontierSummary
from flopsfit_ds.fit.laws.registry import COMPUTE_ONLY
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.report.table import Cell, Heading, Table, absent, span
from flopsfit_ds.report.values import log_error_text, loss_text, number_text


def optima_table(isoflop: IsoflopDiagnostics, fit: ScalingFit | None) -> Table:
    """N*, D* and loss at each budget: by the budget's own valley, and by the law where there is one."""
    headings = [
        Heading("FLOPs"),
        Heading("points"),
        Heading("N*", "isoFLOP minimum"),
        Heading("std. error", "isoFLOP minimum"),
        Heading("D*", "isoFLOP minimum"),
        Heading("loss", "isoFLOP minimum"),
    ]
    optima = list(fit.told_optima) if fit is not None else []
    if fit is not None and optima:
        group = f"law, with {fit.level:.0%} intervals"
        headings += [Heading(name, group) for name in ("N*", "D*", "tokens per parameter", "loss")]
        headings.append(Heading("N within 0.1% of loss", group))
    rows: list[tuple[Cell, ...]] = []
    left = list(optima)
    for budget in isoflop.budgets:
        near = next((o for o in left if math.isclose(o.compute, budget.compute_flops, rel_tol=1e-6)), None)
        if near is not None:
            left.remove(near)
        rows.append((*_budget_cells(budget), *_optimum_cells(near, bool(optima))))
    for optimum in left:
        is_target = optimum is optima[-1]
        first = Cell(
            format_flops(optimum.compute), "the target" if is_target else None, tone="target" if is_target else None
        )
        why = "the target: no run was trained at this compute" if is_target else "no valley at this compute"
        rows.append((first, *(absent(why) for _ in range(5)), *_optimum_cells(optimum, True)))
    return Table(tuple(headings), tuple(rows))


def _budget_cells(budget: BudgetMinimum) -> tuple[Cell, ...]:
    head = (Cell(format_flops(budget.compute_flops)), Cell(str(budget.num_points)))
    if budget.num_params is None or budget.num_tokens is None or budget.loss is None:
        refused = absent(budget.refused or "no minimum")
        return (*head, *(refused for _ in range(4)))
    error = budget.log_num_params_standard_error
    return (
        *head,
        Cell(format_count(budget.num_params)),
        absent("no spare points to judge the scatter by") if error is None else Cell(log_error_text(error)),
        Cell(format_count(budget.num_tokens)),
        Cell(loss_text(budget.loss)),
    )


def _optimum_cells(optimum: Optimum | None, has_law: bool) -> tuple[Cell, ...]:
    if not has_law:
        return ()
    if optimum is None:
        return tuple(absent("the law was not asked at this budget") for _ in range(5))
    cells: list[Cell] = []
    for name, text in (
        ("num_params", format_count),
        ("num_tokens", format_count),
        ("tokens_per_parameter", lambda v: f"{v:.3g}"),
        ("loss", loss_text),
    ):
        interval = span(optimum.intervals.get(name), text)
        cells.append(Cell(text(getattr(optimum, name)), interval.hint, below=interval.text))
    low, high = optimum.flat_band
    return (*cells, Cell(f"{format_count(low)} to {format_count(high)}"))


def frontier_sentence(frontier: FrontierSummary) -> str:
    """The compute-only law of the minima, and how far it is from the fitted law."""
    floors = {"minima": "", "law": " (that of the law: too few minima for one of their own)", "given": " (given)"}
    return (
        f"frontier of {frontier.num_minima} minima: L = E + A/C^alpha with E {number_text(frontier.loss_floor)}"
        f"{floors[frontier.floor_from]}, alpha {number_text(frontier.alpha, 3)}; at the target it says "
        f"{loss_text(frontier.loss_at_target)} (standard error {frontier.log_standard_error:.2%}), "
        f"{math.expm1(frontier.log_gap):+.2%} off the law; its weight in predictions is {frontier.weight:.0%}"
    )


_SYMBOLS = {
    "loss_floor": ("E", "loss floor"),
    "A": ("A", "amplitude of the size term"),
    "B": ("B", "amplitude of the data term"),
    "alpha": ("\N{GREEK SMALL LETTER ALPHA}", "exponent of the size term"),
    "beta": ("\N{GREEK SMALL LETTER BETA}", "exponent of the data term"),
    "a": ("a", "N* grows as C to this power"),
    "b": ("b", "D* grows as C to this power"),
}

_OF_COMPUTE = {
    "A": ("A", "amplitude of the compute term"),
    "alpha": ("\N{GREEK SMALL LETTER ALPHA}", "exponent of the compute term"),
}


def law_table(fit: ScalingFit) -> Table:
    """Parameters of the law with standard errors and intervals."""
    rows: list[tuple[Cell, ...]] = []
    symbols = _SYMBOLS | (_OF_COMPUTE if fit.law.form == COMPUTE_ONLY else {})
    for row in fit.parameter_rows:
        symbol, meaning = symbols.get(row.name, (row.name, "of this form only"))
        error = row.standard_error
        if error is None:
            shown = absent("no resamples were fitted, so there is no standard error")
        elif not math.isfinite(error):
            shown = absent("the resamples do not bound it")
        else:
            shown = Cell(number_text(error, 3))
        rows.append((Cell(symbol), Cell(meaning), Cell(number_text(row.value)), shown, span(row.interval, number_text)))
    headings = (
        Heading("parameter", numeric=False),
        Heading("meaning", numeric=False),
        Heading("value"),
        Heading("standard error"),
        Heading(f"{fit.level:.0%} interval"),
    )
    return Table(headings, tuple(rows))

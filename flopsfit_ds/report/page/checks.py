"""The diagnostics of a fit as a reader wants them: was it right before, and does it hang on its form or on one run."""

from __future__ import annotations

import math

from flopsfit_ds.base.units import format_flops
from flopsfit_ds.fit.checks.diagnostics import Diagnostics
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.report.law_tables import frontier_sentence
from flopsfit_ds.report.table import Cell, Heading, Table, absent
from flopsfit_ds.report.values import loss_text

_NO_BACKTEST = "no back-test: it needs three budgets, and enough points below the largest"


def check_sentences(fit: ScalingFit) -> list[str]:
    """What the diagnostics found, a sentence each; none where they were not asked for."""
    found = fit.diagnostics
    if found is None:
        return []
    sentences: list[str] = []
    if found.backtest is not None:
        test = found.backtest
        budgets = ", ".join(format_flops(compute) for compute in test.held_out_computes)
        sentences.append(
            f"Fitted only up to {format_flops(test.origin_compute)} FLOPs, the law foretold the runs at {budgets} "
            f"FLOPs to within {test.rms:.2%} (root mean square)."
        )
    else:
        sentences.append(f"There is {_NO_BACKTEST}.")
    if fit.frontier is not None:
        sentences.append(f"By compute alone: {frontier_sentence(fit.frontier)}.")
    if found.delta_refits and fit.audit.huber_delta is not None:
        changes = [math.expm1(refit.log_loss_change) for refit in found.delta_refits]
        low, high = (f"{refit.huber_delta:g}" for refit in (found.delta_refits[0], found.delta_refits[-1]))
        sentences.append(
            f"With a Huber delta from {low} to {high} the predicted loss at the target moves by "
            f"{min(changes):+.2%} to {max(changes):+.2%}."
        )
    if found.suspects:
        worst = max(found.suspects, key=lambda suspect: abs(suspect.log_loss_change))
        name = worst.name or f"row {worst.row}"
        sentences.append(
            f"{len(found.suspects)} runs have a large residual or leverage; the most telling, {name}, moves the "
            f"predicted loss at the target by {math.expm1(worst.log_loss_change):+.2%} when it is left out."
        )
    return sentences


def backtest_table(found: Diagnostics) -> Table | None:
    """Error on each budget that was held out, beside the error that was promised."""
    if found.backtest is None:
        return None
    test = found.backtest
    rows = tuple(
        (Cell(format_flops(compute)), Cell(f"{bias:+.2%}"), Cell(f"{expected:.2%}"))
        for compute, bias, expected in zip(test.held_out_computes, test.bias, test.expected, strict=True)
    )
    headings = (Heading("FLOPs held out"), Heading("predicted over observed"), Heading("promised standard error"))
    return Table(headings, rows)


def forms_table(found: Diagnostics) -> Table:
    """Every form of law, best back-test first, and what it predicts; then those that could not be fitted."""
    rows: list[tuple[Cell, ...]] = []
    for score in found.forms:
        error = absent(_NO_BACKTEST) if score.backtest_rms is None else Cell(f"{score.backtest_rms:.2%}")
        rows.append(
            (
                Cell(score.law),
                Cell(str(score.num_parameters)),
                error,
                Cell(f"{score.noise:.2%}"),
                Cell(loss_text(math.exp(score.log_loss_at_target))),
                Cell(f"{score.weight:.0%}"),
            )
        )
    for law, reason in found.skipped_forms.items():
        rows.append((Cell(law), *(absent(f"{law}: {reason}") for _ in range(5))))
    headings = (
        Heading("form", numeric=False),
        Heading("parameters"),
        Heading("back-test error"),
        Heading("residual scatter"),
        Heading("loss at the target"),
        Heading("weight"),
    )
    return Table(headings, tuple(rows))

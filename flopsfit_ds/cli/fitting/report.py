"""`report`: fit a sweep's records anew and write its report; and the summary that `sweep` ends with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.cli.options import AsJson, given_files, print_json, quantity, require_writable, write_text
from flopsfit_ds.spec.fit_options import ParameterCount

if TYPE_CHECKING:
    from rich.table import Table

    from flopsfit_ds.fit.result import ScalingFit
    from flopsfit_ds.plan.sweep_plan import SweepPlan
    from flopsfit_ds.records import RunRecord, SweepFolder
    from flopsfit_ds.report.findings import Findings
    from flopsfit_ds.study.console import Console
    from flopsfit_ds.study.steps import SweepResult

_log = logging.getLogger(__name__)
_MOST_EXCLUDED = 8  # with the rest of what is said, one screen


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report_command)


def report_command(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder of a sweep, finished or not; a table, a fit.json, or -.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the page to this file; without it into the sweep's folder."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write figures (SVG, PNG) and tables (LaTeX, CSV) for papers to this folder.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="FLOPs of the run to plan, for a table; ten times the largest without.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the runs that have ended and write one page that is whole by itself: of a sweep, a fit.json or any table.

    Example: flopsfit-ds report outputs/quickstart -o study.html
    """
    require_writable(output)
    there = None if figures is None else next(each for each in (figures, *figures.parents) if each.exists())
    if there is not None and not there.is_dir():
        raise FitError(f"--figures {figures}: {there} is a file; name a folder to write to")
    if (data / "plan.json").exists() or (data.is_dir() and output is None):
        _report_sweep(data, output, figures, as_json)
        return
    if output is None:
        raise FitError(f"{data}: is no sweep's folder, so name the page to write with --output, such as -o page.html")
    _report_table(data, output, figures, None if target is None else quantity(target, "--target"), as_json)


def _report_sweep(folder: Path, output: Path | None, figures: Path | None, as_json: bool) -> None:
    from flopsfit_ds.decide.sources import ended_runs, read_sweep_plan
    from flopsfit_ds.records import SweepFolder
    from flopsfit_ds.report.write import write_for_papers
    from flopsfit_ds.study.console import Console
    from flopsfit_ds.study.steps import SweepResult, conclude_sweep, try_fit

    sweep = SweepFolder(folder)
    plan = replace(read_sweep_plan(sweep), folder=folder)
    ended = ended_runs(sweep, plan)
    records = ended.records
    if output is None:
        result = conclude_sweep(plan, records, ended.unusable)
    else:
        judged = tuple(record.judged_by(plan.spec.fit.heldout) for record in records)
        result = SweepResult(judged, try_fit(records, plan.spec, ended.unusable), output)
        _write_page(output, plan.name, result, sweep, plan)
    if figures is not None:
        write_for_papers(figures, result.records, result.fit, folder=sweep, parameter_count=plan.spec.fit.parameters)
    if isinstance(result.fit, FitError):  # which lists none
        for gone in ended.unusable:
            _log.warning("left out %s: %s", gone.name, gone.reason)
    if as_json:
        print_json(summary_json(result, plan))
        return
    print_summary(Console(), result.fit, result.records, result.report, parameter_count=plan.spec.fit.parameters)


def _report_table(data: Path, output: Path, figures: Path | None, target: float | None, as_json: bool) -> None:
    from flopsfit_ds.decide.sources import read_sources
    from flopsfit_ds.fit import fit_scaling_law
    from flopsfit_ds.report.write import write_for_papers
    from flopsfit_ds.study.console import Console
    from flopsfit_ds.study.steps import SweepResult

    with given_files([data]) as files:
        source = read_sources(files)
    try:
        fit = fit_scaling_law(source.points, excluded=source.excluded, target_compute=target)
        fit = fit.counting(source.parameters)
    except FitError as error:
        fit = error
    result = SweepResult((), fit, output)
    _write_page(output, source.name, result)
    if figures is not None:
        write_for_papers(figures, (), fit)
    if as_json:
        print_json(summary_json(result))
    else:
        print_summary(Console(), fit, (), output)


def _write_page(
    output: Path, name: str, result: SweepResult, sweep: SweepFolder | None = None, plan: SweepPlan | None = None
) -> None:
    from flopsfit_ds.report.write import make_page

    page, _ = make_page(name, result.records, result.fit, folder=sweep, plan=plan)
    write_text(output, page)


def summary_json(result: SweepResult, plan: SweepPlan | None = None) -> dict[str, Any]:
    """What `report --json` and `sweep --json` print: the answer, what it rests on, and where the files lie."""
    from flopsfit_ds.report import gather

    findings = gather(result.records, result.fit, "total" if plan is None else plan.spec.fit.parameters)
    runs = [
        {"run_id": run.run_id, "label": run.label, "status": run.status, "loss": run.loss, "reason": run.reason}
        for run in result.records
    ]
    return {
        "name": None if plan is None else plan.name,
        "folder": None if plan is None else str(plan.folder),
        "report": str(result.report),
        "prediction": None if findings.prediction is None else findings.prediction.to_json_dict(),
        "refusal": findings.refusal,
        "warnings": [asdict(warning) for warning in findings.warnings],
        "excluded": [{"name": gone.name, "reason": gone.reason} for gone in findings.excluded],
        "runs": runs,
    }


def print_summary(
    console: Console,
    fit: ScalingFit | FitError,
    records: Sequence[RunRecord],
    report_path: Path,
    *,
    parameter_count: ParameterCount = "total",
) -> None:
    """Print what a sweep found: minima, law, prediction, warnings, exclusions and where the report lies.

    Args:
        console: Where to print.
        fit: The fit, or the error that says why there is none.
        records: The runs, in the order in which they were given to the fit.
        report_path: The page.
        parameter_count: What N counts.
    """
    from rich.text import Text

    from flopsfit_ds.report import gather

    findings = gather(records, fit, parameter_count)
    if findings.isoflop.budgets:
        console.print(_minima_table(findings))
    for line in (*_law_lines(findings), *_prediction_lines(findings)):
        console.print(line, markup=False, highlight=False)
    for warning in findings.warnings:
        if warning.code == "edge_minimum":
            continue  # the table says it
        console.print(Text.assemble(("warning ", "yellow"), f"{warning.code.replace('_', ' ')}: {warning.message}"))
    for run in findings.excluded[:_MOST_EXCLUDED]:
        console.print(Text.assemble(("left out ", "yellow"), f"{run.name}: {run.reason}"))
    if len(findings.excluded) > _MOST_EXCLUDED:
        console.print(f"... and {len(findings.excluded) - _MOST_EXCLUDED} more left out, listed in the report")
    console.tell(Text.assemble(("report ", "bold"), str(report_path)))


def _minima_table(findings: Findings) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="isoFLOP minima", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("FLOPs", "points", "N*", "D*", "D*/N*", "loss"):
        table.add_column(name, justify="right")
    refused = any(budget.refused for budget in findings.isoflop.budgets)
    if refused:
        table.add_column("why there is none")
    for budget in findings.isoflop.budgets:
        cells = [format_flops(budget.compute_flops), str(budget.num_points)]
        if budget.num_params is None or budget.num_tokens is None or budget.loss is None:
            table.add_row(*cells, *4 * ("-",), budget.refused or "", style="dim")
            continue
        ratio = f"{budget.num_tokens / budget.num_params:.3g}"
        cells += [format_count(budget.num_params), format_count(budget.num_tokens), ratio, f"{budget.loss:.4f}"]
        table.add_row(*cells, *([""] if refused else []))
    return table


def _law_lines(findings: Findings) -> list[str]:
    fit = findings.fit
    if fit is None:
        return [f"no scaling law: {findings.refusal}"]
    law = fit.law
    values = {"E": law.loss_floor, "A": law.A, "B": law.B, "alpha": law.alpha, "beta": law.beta, **law.own}
    error = fit.standard_errors.get("a")
    exponent = f"N* ~ C^{law.a:.3f}" + ("" if error is None else f" ± {error:.3f}")
    return [
        f"law  {law.formula}",
        "     " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()) + f"; {exponent}",
    ]


def _prediction_lines(findings: Findings) -> list[str]:
    prediction = findings.prediction
    refused = [f"no optimum: {findings.refusal}"] if findings.fit is not None and findings.target is None else []
    if prediction is None:
        return refused
    low, high = prediction.interval.low, prediction.interval.high
    return [
        *refused,
        f"next at {format_flops(prediction.compute)} FLOPs: N {format_count(prediction.num_params)}, "
        f"D {format_count(prediction.num_tokens)}, {prediction.num_tokens / prediction.num_params:.3g} tokens per "
        f"parameter; loss {prediction.loss:.4f}, {prediction.level:.0%} interval {low:.4f} to {high:.4f}",
    ]

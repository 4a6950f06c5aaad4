"""Write a report: figures first, the page last, each file replaced whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flopsfit_ds.base.errors import FitError, SweepFolderError
from flopsfit_ds.base.storage import atomic_write
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.records.record import AGAINST_WAITING, WAITED_MUCH
from flopsfit_ds.report.curves import LossCurve, read_curves
from flopsfit_ds.report.figures.for_papers import write_figures, write_tables
from flopsfit_ds.report.figures.palette import Tone
from flopsfit_ds.report.figures.svg import Drawing, Svg, rendered
from flopsfit_ds.report.findings import Findings, gather, unit_of_loss
from flopsfit_ds.report.law_tables import law_table, optima_table
from flopsfit_ds.report.page.page import render_page
from flopsfit_ds.report.page.tables import machines_table, points_table, runs_table
from flopsfit_ds.spec.fit_options import ParameterCount

PAGE = "index.html"
FIGURES = ("isoflop", "tokens", "frontier", "residuals", "optimum", "curves")


def write_report(
    sweep_folder: SweepFolder | str | Path,
    records: Sequence[RunRecord],
    fit: ScalingFit | FitError,
    plan: SweepPlan | None = None,
) -> Path:
    """Write `report/index.html`, which holds all it shows, and its figures beside it as SVG.

    The page needs no network; its script saves figures and reads curves, and nothing else. The same input gives the
    same bytes. Every file is replaced whole, the page last, so a kill at any moment leaves a whole page.

    Args:
        sweep_folder: The sweep's folder; it has to exist.
        records: The runs, in the order in which they were given to the fit.
        fit: The fit, or the error that says why there is none.
        plan: The plan, for its warnings, its data and the runs that have not ended.

    Returns:
        Path of the page.

    Raises:
        SweepFolderError: The folder does not exist or cannot be written.
    """
    folder = sweep_folder if isinstance(sweep_folder, SweepFolder) else SweepFolder(Path(sweep_folder))
    name = plan.name if plan is not None else folder.path.resolve().name
    page, figures = make_page(name, records, fit, folder=folder, plan=plan)
    try:
        folder.report.mkdir(exist_ok=True)
    except OSError as error:
        raise SweepFolderError(f"{folder.report}: cannot be made: {error.strerror}; is this a sweep folder?") from None
    for figure in figures:
        atomic_write(folder.report / f"{figure.name}.svg", figure.standalone, durable=False)
    atomic_write(folder.report / PAGE, page)
    for name in set(FIGURES) - {figure.name for figure in figures}:
        (folder.report / f"{name}.svg").unlink(missing_ok=True)  # of an earlier report
    return folder.report / PAGE


def make_page(
    name: str,
    records: Sequence[RunRecord],
    fit: ScalingFit | FitError,
    *,
    folder: SweepFolder | None = None,
    plan: SweepPlan | None = None,
) -> tuple[str, list[Svg]]:
    """The page as text, whole by itself, and its figures.

    Args:
        name: What it is about.
        records: The runs, in the order in which they were given to the fit; none where the fit is of a table.
        fit: The fit, or the error that says why there is none.
        folder: The sweep's folder, for its spec, its results and the curves of its runs.
        plan: Its plan.
    """
    findings = gather(records, fit, "total" if plan is None else plan.spec.fit.parameters)
    findings = replace(findings, loss_unit=unit_of_loss(plan, records))
    curves = [] if folder is None else read_curves(folder, [record.run_id for record in records])
    figures, tones = draw_figures(findings, curves)
    notes = [] if folder is None else _notes(folder, findings, plan)
    return render_page(name, folder, findings, figures, tones, plan, notes, curves), figures


def write_for_papers(
    out: Path,
    records: Sequence[RunRecord],
    fit: ScalingFit | FitError,
    *,
    folder: SweepFolder | None = None,
    parameter_count: ParameterCount = "total",
) -> None:
    """Write every figure as SVG and PNG, and every table as LaTeX and CSV.

    Args:
        out: Folder to write to; made where it is not there.
        records: The runs; none where the fit is of a table.
        fit: The fit, or the error that says why there is none.
        folder: The sweep's folder, for the curves of its runs.
        parameter_count: What N counts.

    Raises:
        SweepFolderError: The folder cannot be written.
    """
    findings = gather(records, fit, parameter_count)
    curves = [] if folder is None else read_curves(folder, [record.run_id for record in records])
    figures, _ = draw_figures(findings, curves, with_png=True)
    tables = {"optima": optima_table(findings.isoflop, findings.fit), "points": points_table(findings)}
    if findings.fit is not None:
        tables["law"] = law_table(findings.fit)
    if records:
        tables |= {"runs": runs_table(findings), "machines": machines_table(findings)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_figures(out, figures)
        write_tables(out, tables)
    except OSError as error:
        raise SweepFolderError(
            f"{out}: cannot be written: {error.strerror or error}; name a folder to write to"
        ) from None


def draw_figures(
    findings: Findings, curves: Sequence[LossCurve] = (), *, with_png: bool = False
) -> tuple[list[Svg], tuple[Tone, ...]]:
    """The figures that these findings and training curves have something to show in, and the colours they use."""
    from flopsfit_ds.report.figures.curve_figures import curves_figure

    return rendered(
        lambda: _drawings(findings) + ([curves_figure(curves, unit=findings.loss_unit)] if curves else []),
        with_png=with_png,
    )


def _drawings(findings: Findings) -> list[Drawing]:
    from flopsfit_ds.report.figures.budget_figures import isoflop_figure, tokens_figure
    from flopsfit_ds.report.figures.law_figures import frontier_figure, optimum_figure, residuals_figure

    if not findings.points:
        return []
    drawings = [isoflop_figure(findings) if findings.has_isoflop else tokens_figure(findings)]
    drawings.append(frontier_figure(findings))
    if findings.fit is not None:
        drawings.append(residuals_figure(findings))
    has_optima = findings.fit is not None and bool(findings.fit.optima)
    if has_optima or any(budget.num_params for budget in findings.isoflop.budgets):
        drawings.append(optimum_figure(findings))
    return drawings


def _notes(folder: SweepFolder, findings: Findings, plan: SweepPlan | None) -> list[str]:
    """What else a reader must know: runs that are missing here, and warnings of the plan."""
    ended = {record.run_id for record in findings.records}
    notes: list[str] = []
    if plan is not None:
        missing = [run.label for run in plan.runs if run.run_id not in ended]
        if missing:
            notes.append(f"{len(missing)} of {len(plan.runs)} planned runs have not ended: {', '.join(missing)}")
        notes += plan.warnings
    waited = [(record.label, record.observed.waited_share or 0.0) for record in findings.records if record.observed]
    slowed = sorted((share, label) for label, share in waited if share > WAITED_MUCH)[::-1]
    if slowed:
        most, label = slowed[0]
        notes.append(
            f"{len(slowed)} runs waited for samples for more than {WAITED_MUCH:.0%} of their time, {label} for "
            f"{most:.0%}: {AGAINST_WAITING}"
        )
    others = folder.other_runs(ended)
    if others:
        notes.append(f"{len(others)} finished runs of this folder are not part of this report: {', '.join(others)}")
    return notes

"""The command and the summary in the terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flopsfit_ds.base.errors import DataError, FitError
from flopsfit_ds.base.storage import write_json
from flopsfit_ds.base.units import format_count
from flopsfit_ds.cli.fitting.report import print_summary, register
from flopsfit_ds.fit import ScalingFit, fit_scaling_law, points_from_records
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.study.console import Console
from helpers.cli_in_process import invoke
from helpers.report.report_records import diverged, isoflop_sweep, of_plan, record
from helpers.sweeps import MICRO, plan_of, with_values


def application() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return app


def summary(fit: ScalingFit | FitError, records: list[RunRecord]) -> str:
    stream = io.StringIO()
    print_summary(Console(file=stream, width=160), fit, records, Path("outputs/x/report/index.html"))
    return stream.getvalue()


def fit_of(records: list[RunRecord]) -> ScalingFit:
    chosen = points_from_records(records)
    return fit_scaling_law(chosen.points, excluded=chosen.excluded, bootstrap_samples=50, diagnostics=False)


def finished_sweep(root: Path, corpus_folder: Path) -> tuple[SweepPlan, SweepFolder]:
    design = {
        "method": "isoflop",
        "compute_budgets": [3e10, 1e11, 3e11],
        "sizes_per_budget": 5,
        "tokens_per_parameter": 20,
    }
    plan = plan_of(with_values(MICRO, design=design, fit__target_compute=2e13), corpus_folder)
    folder = SweepFolder(root)
    folder.prepare()
    write_json(folder.plan, plan.to_json_dict())
    for made in of_plan(plan):
        folder.run(made.run_id).path.mkdir()
        folder.run(made.run_id).write_record(made)
    return plan, folder


def test_command_fits_the_folder_and_writes_the_page(tmp_path: Path, corpus_folder: Path) -> None:
    plan, folder = finished_sweep(tmp_path / "sweep", corpus_folder)
    (corpus_folder / "corpus.txt").unlink()  # a report needs no data
    result = CliRunner().invoke(application(), ["report", str(folder.path)])
    assert result.exit_code == 0, result.output
    page = (folder.report / "index.html").read_text(encoding="utf-8")
    assert "2e13</b> FLOPs" in page, "the spec's target"
    assert all(run.label in page for run in plan.runs)
    assert "index.html" in result.output
    _, audited = invoke("audit", str(folder.path))
    assert "2e13 FLOPs is " in audited, "the spec's target, and not ten times the largest run"


@pytest.mark.parametrize("content", [None, "{}", '{"crc32": "44136fa3", "content": {}}'], ids=["none", "torn", "other"])
def test_command_refuses_what_is_no_sweep(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        SweepFolder(tmp_path).plan.write_text(content)
    result = CliRunner().invoke(application(), ["report", str(tmp_path)])
    assert result.exception is not None
    assert "plan.json" in str(result.exception)
    assert not SweepFolder(tmp_path).report.exists()
    if content is None:
        assert isinstance(result.exception, DataError)


def test_summary_has_minima_law_prediction_and_exclusions() -> None:
    records = [*isoflop_sweep(), diverged(record(3e4, 1e7, 3e12, label="[red]one[/red]"))]
    fit = fit_of(records)
    text = summary(fit, records)
    for budget in fit.isoflop.budgets:
        assert budget.num_params is not None
        assert format_count(budget.num_params) in text
    assert f"next at 3e14 FLOPs: N {format_count(fit.optima[-1].num_params)}" in text
    assert f"alpha {fit.law.alpha:.4g}" in text
    assert "left out [red]one[/red]: status diverged: loss is nan at step 312" in text
    assert text.endswith("report outputs/x/report/index.html\n")


def test_summary_without_a_law_says_why() -> None:
    records = isoflop_sweep((1e12,), 6, shift=9.0)
    with pytest.raises(FitError) as caught:
        fit_of(records)
    text = summary(caught.value, records)
    assert "no scaling law: all 6 points lie at one compute budget" in text
    assert "minimum at an edge" in text


def test_summary_of_many_exclusions_is_short() -> None:
    good = isoflop_sweep()
    records = [*good, *(diverged(replace(run, run_id=f"{k:012x}")) for k, run in enumerate(good))]
    text = summary(fit_of(records), records)
    assert text.count("left out ") == 8
    assert "16 more left out, listed in the report" in text


def test_importing_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, flopsfit_ds.cli.fitting.report, flopsfit_ds.report;"
        "print([m for m in ('numpy', 'scipy', 'matplotlib', 'jinja2', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"

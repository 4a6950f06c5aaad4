"""What a study gives back: an answer, a table and figures in notebooks, and errors that cannot be overlooked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.engine import SweepStoppedError
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.study import optimal
from flopsfit_ds.study.optimal import _carried_out
from flopsfit_ds.study.steps import SweepResult
from helpers.report.report_records import isoflop_sweep, of_plan
from helpers.report.report_writer import fit_of
from helpers.sweeps import MICRO, plan_of, with_values

DESIGN = {"method": "isoflop", "compute_budgets": [3e10, 3e11], "sizes_per_budget": 4, "tokens_per_parameter": 20}


def _result(records: list[RunRecord]) -> SweepResult:
    return SweepResult(tuple(records), fit_of(records), Path("report/index.html"))


def _finished(plan: SweepPlan, root: Path) -> SweepPlan:
    plan = replace(plan, folder=root / "study")
    folder = SweepFolder(plan.folder)
    folder.prepare()
    for made in of_plan(plan):
        folder.run(made.run_id).path.mkdir()
        folder.run(made.run_id).write_record(made)
    return plan


def test_a_result_answers_in_text_and_in_a_notebook() -> None:
    result = _result(isoflop_sweep())
    told = result.predict()
    assert told.compute == result.law.target_compute
    assert f"loss {told.loss:.4f}" in str(result)
    assert f"{told.interval.low:.4f} to {told.interval.high:.4f}" in result._repr_html_()
    assert len(str(result.table()).splitlines()) == 1 + len(result.law.optima)
    assert result.predict(1e14).compute == 1e14
    assert result.plot("frontier")._repr_svg_().startswith("<?xml")
    with pytest.raises(FitError, match="there is isoflop"):
        result.plot("valleys")
    assert f"<td>{result.law.law.alpha:.4g}</td>" in result.law._repr_html_()


def test_a_fit_error_is_raised_by_whatever_needs_the_law() -> None:
    result = _result(isoflop_sweep((1e12,), 6))
    assert str(result).startswith("no scaling law: ")
    for ask in (lambda: result.law, result.predict):
        with pytest.raises(FitError, match="one compute budget"):
            ask()
    assert "<table>" in result.table()._repr_html_()


def test_names_in_a_notebook_are_text() -> None:
    plan = replace(isoflop_sweep()[0], label="<img src=x>")
    result = _result([plan, *isoflop_sweep()[1:]])
    assert "<img" not in result._repr_html_()


def test_a_study_shows_its_progress_and_its_answer(corpus_folder: Path, tmp_path: Path, capsys) -> None:
    plan = _finished(plan_of(with_values(MICRO, design=DESIGN, fit__target_compute=2e13), corpus_folder), tmp_path)
    assert plan.runs[0].label in plan._repr_html_()
    result = _carried_out(plan, lambda run: pytest.fail("nothing is left to train"), None, progress=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(result.answer().split()) in shown
    assert result.report.exists()
    _carried_out(plan, lambda run: pytest.fail("nothing is left to train"), None, progress=False)
    assert capsys.readouterr().out == ""


def test_a_study_without_a_law_warns(corpus_folder: Path, tmp_path: Path) -> None:
    one = {**DESIGN, "compute_budgets": [3e10]}
    plan = _finished(plan_of(with_values(MICRO, design=one), corpus_folder), tmp_path)
    with pytest.warns(UserWarning, match="no scaling law"):
        _carried_out(plan, lambda run: pytest.fail("nothing is left to train"), None, progress=False)


def test_a_study_that_is_stopped_ends_as_the_command_does(
    corpus_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    plan = _finished(plan_of(with_values(MICRO, design=DESIGN), corpus_folder), tmp_path)

    def stopped(*_: object, **__: object) -> None:
        raise SweepStoppedError("SIGINT: stopped after 1 s; the same command goes on from here", 130)

    monkeypatch.setattr(optimal, "run_sweep", stopped)
    with pytest.raises(SystemExit) as left:
        _carried_out(plan, lambda run: pytest.fail("nothing is trained"), None, progress=False)
    assert left.value.code == 130
    assert capsys.readouterr().err.startswith("stopped: SIGINT: stopped after 1 s")
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    with pytest.raises(KeyboardInterrupt, match="goes on from here"):
        _carried_out(plan, lambda run: pytest.fail("nothing is trained"), None, progress=False)

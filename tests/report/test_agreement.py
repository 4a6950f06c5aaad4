"""Page, `fit.json`, table and terminal say the same, whichever command was the last and whatever was deleted."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.storage import read_json, write_json
from flopsfit_ds.cli.main import run
from flopsfit_ds.cli.sweeping.carry_out import carry_out
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.report import write_report
from helpers.report.report_records import of_plan
from helpers.sweeps import MICRO, plan_of, with_values

DESIGN = {"method": "isoflop", "compute_budgets": [3e10, 3e11], "sizes_per_budget": 4, "tokens_per_parameter": 20}


@pytest.fixture
def study(tmp_path: Path, corpus_folder: Path) -> SweepPlan:
    """A sweep whose runs have all ended; nothing is concluded yet."""
    plan = plan_of(with_values(MICRO, design=DESIGN, fit__target_compute=2e13), corpus_folder)
    return _with_records(replace(plan, folder=tmp_path / "study"))


def _with_records(plan: SweepPlan, shift: float = 0.0) -> SweepPlan:
    folder = SweepFolder(plan.folder)
    folder.prepare()
    for made in of_plan(plan):
        assert made.loss is not None
        folder.run(made.run_id).path.mkdir()
        folder.run(made.run_id).write_record(replace(made, loss=made.loss + shift))
    return plan


def _swept(plan: SweepPlan, capsys: pytest.CaptureFixture[str]) -> str:
    carry_out(plan, "local", None)
    return capsys.readouterr().out


def _alpha_everywhere(folder: Path, printed: str) -> None:
    alpha = f"{read_json(folder / 'fit.json')['law']['alpha']:.4g}"
    assert f"alpha {alpha}" in printed
    assert alpha in (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_each_command_leaves_one_answer_when_studies_take_turns_in_a_folder(study, corpus_folder, capsys) -> None:
    first = _swept(study, capsys)
    other = plan_of(with_values(MICRO, design=DESIGN, model__context_length=8), corpus_folder)
    _with_records(replace(other, folder=study.folder), shift=1.0)
    write_json(SweepFolder(study.folder).plan, other.to_json_dict())  # a sweep that was stopped before its end
    SweepFolder(study.folder).run(other.runs[0].run_id).record.unlink()
    assert run(["report", str(study.folder)]) == 0
    printed = capsys.readouterr().out
    assert printed != first
    _alpha_everywhere(study.folder, printed)
    again = _swept(study, capsys)
    assert again == first
    _alpha_everywhere(study.folder, again)
    _fit_of_the_folder_is_its_plans(study, [run.run_id for run in other.runs[1:]], capsys)


def _fit_of_the_folder_is_its_plans(study: SweepPlan, foreign: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", str(study.folder), "--json"]) == 0
    found, written = json.loads(capsys.readouterr().out), read_json(study.folder / "fit.json")
    assert found["law"] == written["law"]
    assert found["optima"] == written["optima"], "at the spec's target compute, without resamples, as the spec says"
    left_out = {entry["name"]: entry["reason"] for entry in found["excluded"]}
    assert sorted(left_out) == sorted(foreign)
    assert all("plan.json" in reason for reason in left_out.values())
    with (study.folder / "results.csv").open(newline="") as table:
        assert [row["run_id"] for row in csv.DictReader(table)] == [planned.run_id for planned in study.runs]


def test_what_is_whole_is_only_read_again_and_what_was_deleted_is_written_again(study, capsys) -> None:
    first = _swept(study, capsys)
    whole = {path: path.stat().st_mtime_ns for path in (study.folder / "report").iterdir()}
    assert _swept(study, capsys) == first
    assert {path: path.stat().st_mtime_ns for path in (study.folder / "report").iterdir()} == whole
    for name in ("fit.json", "report/isoflop.svg"):
        before = (study.folder / name).read_bytes()
        (study.folder / name).unlink()
        assert _swept(study, capsys) == first
        assert (study.folder / name).read_bytes() == before


def test_the_unit_of_the_loss_is_that_of_the_data(study, tmp_path, capsys):
    folder = SweepFolder(study.folder)
    carry_out(study, "auto", None)
    page = (folder.report / "index.html").read_text()
    assert "nats per byte" in page
    assert "nats per token" not in page
    words = replace(study, corpus=replace(study.corpus, tokenizer="tokenizer.json"))
    records = list(folder.records())
    assert "nats per token" in write_report(folder, records, FitError("none"), plan=words).read_text()
    own = replace(study, corpus=replace(study.corpus, source="dataset"))
    assert "nats" not in write_report(folder, records, FitError("none"), plan=own).read_text()

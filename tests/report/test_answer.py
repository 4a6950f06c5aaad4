"""The answer: one number and one interval everywhere, what it costs, how the runs were made, and pages of tables."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from flopsfit_ds.base.units import format_count
from flopsfit_ds.fit import ScalingFit
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import RunRecord, SourceTokens
from flopsfit_ds.report import gather
from flopsfit_ds.report.conduct import conduct
from flopsfit_ds.report.figures.for_papers import as_latex
from flopsfit_ds.report.law_tables import optima_table
from flopsfit_ds.report.outlook import outlook
from flopsfit_ds.report.table import Cell, Heading, Table
from helpers.cli_in_process import invoke, run_json
from helpers.report.report_records import isoflop_sweep, record
from helpers.report.report_writer import fit_of
from helpers.sweeps import MICRO, plan_of, with_values


def _fitted(records: list[RunRecord]) -> ScalingFit:
    fit = fit_of(records)
    assert isinstance(fit, ScalingFit)
    return fit


def _plan(folder: Path, **hardware: object) -> SweepPlan:
    changes = {f"hardware__{name}": value for name, value in hardware.items()}
    return plan_of(with_values(MICRO, **changes), folder)


def test_loss_at_a_budget_has_one_centre_and_one_interval() -> None:
    fit = _fitted(isoflop_sweep())
    stored = fit.to_json_dict()["optima"]
    shown = {row[0].text: row[-2] for row in optima_table(fit.isoflop, fit).rows}
    for optimum, cell in zip(stored, shown.values(), strict=True):
        told = fit.predict(optimum["compute"])
        assert optimum["loss"] == told.loss
        assert optimum["intervals"]["loss"] == {"low": told.interval.low, "high": told.interval.high}
        assert (cell.text, cell.below) == (
            f"{told.loss:.4f}",
            f"{told.interval.low:.4f} to {told.interval.high:.4f}",
        )


def test_the_proposal_of_further_runs_rests_on_the_fit_that_is_shown(corpus_folder: Path, monkeypatch) -> None:
    records = isoflop_sweep()
    findings = gather(records, _fitted(records))
    monkeypatch.setattr("flopsfit_ds.decide.choosing.choose.fit_scaling_law", None)
    told = outlook(findings, _plan(corpus_folder, device="H100-SXM", gpus_per_node=8))
    assert told is not None
    assert told.surer is not None


def test_cost_of_the_target_follows_price_and_hardware(corpus_folder: Path) -> None:
    records = isoflop_sweep()
    findings = gather(records, _fitted(records))
    cheap = outlook(findings, _plan(corpus_folder, device="H100-SXM", gpus_per_node=8, price_per_gpu_hour=2.0))
    dear = outlook(findings, _plan(corpus_folder, device="H100-SXM", gpus_per_node=8, price_per_gpu_hour=4.0))
    assert cheap is not None
    assert dear is not None
    prices = [float(re.findall(r"GPU-hours, ([\d.,e-]+) at", each.cost)[0]) for each in (cheap, dear)]
    assert prices[1] == pytest.approx(2 * prices[0], rel=0.01)
    assert "H100-SXM under ZeRO-" in cheap.cost
    assert cheap.surer is not None
    smaller = [float(text) for text in re.findall(r"([\d.]+) times", cheap.surer)]
    assert min(smaller) > 1
    roomy = _plan(corpus_folder, device="H100-SXM", gpus_per_node=1)
    small = roomy.spec.hardware.model_copy(update={"device_memory": 2**20})
    tight = outlook(findings, replace(roomy, spec=roomy.spec.model_copy(update={"hardware": small})))
    assert tight is not None
    assert "cannot be planned" in tight.cost
    untold = outlook(findings, None)
    assert untold is not None
    assert "declares no hardware" in untold.cost


def test_conduct_tells_tuning_repeats_and_scaling() -> None:
    records = isoflop_sweep()
    assert "not tuned: every run took 0.004" in conduct(records)[0]
    first = records[0]
    other = replace(first, run_id="f" * 12, learning_rate=8e-3)
    assert conduct([*records, other])[0].startswith("Learning rates were tried at 1 of ")
    scarce = [replace(each, unique_tokens=round(each.planned.num_tokens / 3)) for each in records]
    assert "up to 3.0 times" in conduct(scarce)[1]
    assert "No data repeats" in conduct([replace(each, unique_tokens=10**13) for each in records])[1]
    taken = {"prose": SourceTokens(500, 100, 5.0), "code": SourceTokens(50, 100, 0.5)}
    mixed = [replace(each, unique_tokens=200, sources=taken) for each in records]
    assert f"up to 5.0 times ({first.label}, source prose)" in conduct(mixed)[1]
    assert first.observed is not None
    wide = replace(
        first, observed=replace(first.observed, world_size=4, zero_stage=2, seconds=first.observed.seconds / 2)
    )
    assert "Under ZeRO-2 on 4 devices, a device did 50%" in conduct([*records, wide])[-1]
    assert conduct([]) == []


def test_a_table_has_the_page_of_a_sweep_and_figures_for_papers(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    rows = [record(n, c / 6 / n, c) for c in (1e12, 4e12, 1.6e13) for n in (2e4, 5e4, 1e5, 2e5, 5e5)]
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["num_params", "num_tokens", "loss", "label"])
        writer.writerows([r.planned.num_params_total, r.planned.num_tokens, r.loss, f"<b>{r.label}"] for r in rows)
    code, said = invoke("report", table)
    assert code == 2
    assert "--output" in said
    page, papers = tmp_path / "page.html", tmp_path / "papers"
    told = run_json("report", table, "-o", page, "--figures", papers, "--target", "1e15", "--json")
    text = page.read_text(encoding="utf-8")
    assert f"<b>{format_count(told['prediction']['num_params'])}</b>" in text
    assert html.escape(f"<b>{rows[0].label}") in text
    assert f"<b>{rows[0].label}" not in text
    assert {path.suffix for path in papers.iterdir()} == {".svg", ".png", ".tex", ".csv"}
    assert (papers / "isoflop.png").read_bytes().startswith(b"\x89PNG")
    losses = [float(row["loss"]) for row in csv.DictReader((papers / "points.csv").open(newline=""))]
    assert sorted(losses) == sorted(round(r.loss, 4) for r in rows if r.loss is not None)


def test_latex_shows_what_it_is_given() -> None:
    table = Table((Heading("a_b", numeric=False), Heading("50%")), ((Cell("x & {y}"), Cell("1", below="0 to 2")),))
    text = as_latex(table)
    assert r"a\_b & 50\% \\" in text
    assert r"x \& \{y\} & 1 (0 to 2) \\" in text
    assert text.count(r"\\") == 2


def test_page_carries_spec_and_results(tmp_path: Path) -> None:
    from flopsfit_ds.records import SweepFolder
    from flopsfit_ds.report import write_report

    folder = SweepFolder(tmp_path)
    folder.spec.write_text("name: </script><script>alert(1)</script>\n")
    folder.results.write_text("run_id,loss\nabc,1.5\n")
    records = isoflop_sweep()
    text = write_report(folder, records, fit_of(records)).read_text(encoding="utf-8")
    held = text.partition('id="files">')[2].partition("</script>")[0]
    assert json.loads(held) == {"spec.yaml": folder.spec.read_text(), "results.csv": folder.results.read_text()}
    assert text.count("<script>") == 1, "the code of the page alone"

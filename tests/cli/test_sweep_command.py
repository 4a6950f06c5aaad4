"""`sweep`, from a spec to records, table, fit and report, and again; launchers and kills: see test_main_job."""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flopsfit_ds.records import RunRecord, SweepFolder
from helpers.cli_in_process import invoke
from helpers.sweeps import MICRO, with_values, write_bytes_corpus

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = str(PROJECT / "scripts" / "sweep.py")
SWEEP = with_values(
    MICRO,
    design={"method": "isoflop", "compute_budgets": [2e8, 4e8], "sizes_per_budget": 3, "size_span": 4},
    design__tokens_per_parameter=2,
    training__global_batch_tokens=64,
)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "150"}


def sweep(folder: Path, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, SCRIPT, *arguments]
    result = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def sweep_here(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int = 0) -> str:
    """The same in this process, whose server of workers is loaded once."""
    monkeypatch.chdir(folder)
    found, output = invoke("sweep", *arguments)
    assert found == code, output
    return output


def seconds_of_children() -> float:
    """Of a core, that all ended children of this process have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def records(folder: Path, name: str = "micro") -> dict[str, RunRecord]:
    return {record.run_id: record for record in SweepFolder(folder / "outputs" / name).records()}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    """A folder in which the small sweep has run, and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    write_bytes_corpus(folder / "corpus.txt")
    (folder / "spec.yaml").write_text(yaml.safe_dump(SWEEP))
    return folder, sweep(folder, "spec.yaml")


def test_a_sweep_leaves_records_a_table_and_a_report(done):
    folder, printed = done
    found = records(folder)
    assert len(found) == 6
    for record in found.values():
        assert record.status == "completed"
        assert record.observed is not None
        assert record.observed.num_params_total == record.planned.num_params_total
        assert record.observed.num_tokens == record.planned.num_tokens
        assert record.observed.zero_stage == record.planned.zero_stage
        assert record.planned.flops == pytest.approx(record.compute_budget_flops, rel=0.005)
        assert record.loss is not None
        assert record.label in printed
    sweep_folder = folder / "outputs" / "micro"
    rows = list(csv.DictReader((sweep_folder / "results.csv").open(newline="")))
    assert {row["run_id"]: float(row["loss"]) for row in rows} == {key: value.loss for key, value in found.items()}
    page = (sweep_folder / "report" / "index.html").read_text()
    assert all(run_id in page for run_id in found)
    assert "report" in printed


def test_run_again_nothing_is_trained_and_it_is_quick(done):
    folder, _ = done
    before = {path: path.stat().st_mtime_ns for path in (folder / "outputs" / "micro" / "runs").rglob("record.json")}
    began = seconds_of_children()
    printed = sweep(folder, "spec.yaml")
    assert seconds_of_children() - began < 20, "a quarter of that, of a core: what else the machine does is not counted"
    assert "training" not in printed
    assert "report outputs/micro/report/index.html" in printed
    assert before == {
        path: path.stat().st_mtime_ns for path in (folder / "outputs" / "micro" / "runs").rglob("record.json")
    }
    assert len(list((folder / "outputs" / "micro" / "runs").glob("*/attempt-*"))) == 6


def test_a_changed_spec_in_the_same_folder_trains_only_what_is_new(done, monkeypatch):
    folder, _ = done
    before = records(folder)
    overrides = "design.compute_budgets=[2e8, 4e8, 3e8]", "design.sizes_per_budget=3"
    printed = sweep_here(folder, monkeypatch, "spec.yaml", *overrides)
    assert "training 3 of 9 runs" in printed
    after = records(folder)
    assert len(after) == 9
    assert {run_id: after[run_id] for run_id in before} == before


def test_failed_runs_are_exit_code_1_with_the_reason(tmp_path, monkeypatch):
    """A class that fails in training: the plan could not know."""
    write_bytes_corpus(tmp_path / "corpus.txt")
    (tmp_path / "failing_pkg.py").write_text(
        "import torch\n"
        "class Model(torch.nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.table = torch.nn.Embedding(256, width)\n"
        "        self.head = torch.nn.Linear(width, 256)\n"
        "    def forward(self, tokens):\n"
        "        if torch.distributed.is_initialized():\n"
        "            raise ValueError('this model has a bug')\n"
        "        return self.head(self.table(tokens))\n"
    )
    model = {"family": "class", "class_path": "failing_pkg:Model", "size_parameter": "width", "context_length": 16}
    values = with_values(MICRO, model=model, execution__max_attempts=1)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.syspath_prepend(str(tmp_path))
    printed = sweep_here(tmp_path, monkeypatch, "spec.yaml", "--allow-import", "failing_pkg", code=1)
    assert "this model has a bug" in printed
    record = next(iter(records(tmp_path).values()))
    assert record.status == "failed"
    assert "this model has a bug" in (record.reason or "")
    assert json.loads((tmp_path / "outputs" / "micro" / "plan.json").read_text())

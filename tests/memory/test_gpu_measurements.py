"""The estimator is held to every measurement of a real GPU that is committed, and the script that makes them."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.simulate import SimulationError, Simulator

FILES = sorted((Path(__file__).parents[1] / "gpu_measurements").glob("*.json"))
SCRIPT = Path(__file__).parents[2] / "scripts" / "validate_gpu.py"


def hold_to_measurements(result: dict[str, Any], name: str) -> None:
    """Compare every prediction of a file with its measurement."""
    assert result["device"] == "cuda", f"{name}: a dry run on a CPU is no measurement"
    errors = sorted(abs(row["relative_error"]) for row in result["rows"] if row["relative_error"] is not None)
    others = [f"{row['status']}: {row['reason']}" for row in result["rows"] if row["relative_error"] is None]
    assert errors, f"{name} has no measured row; of {len(others)} others the first is: {others[:1]}"
    assert statistics.median(errors) <= 0.005
    assert errors[int(0.95 * (len(errors) - 1))] <= 0.02
    assert not [row for row in result["rows"] if row["status"] == "out of memory"], "these were predicted to fit"


@pytest.mark.skipif(not FILES, reason="no measurement of a GPU is committed yet; scripts/validate_gpu.py makes one")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_predictions_hold_on_the_measured_gpu(path):
    hold_to_measurements(json.loads(path.read_text()), path.name)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no measured row"),
        (
            [{"relative_error": None, "status": "timed out", "reason": "no answer in 900 s"}],
            "first is: .'timed out: no",
        ),
        ([{"relative_error": 0.03, "status": "measured", "reason": None}], "<= 0.005"),
        (
            [
                {"relative_error": 0.0, "status": "measured", "reason": None},
                {"relative_error": None, "status": "out of memory", "reason": "2 GiB"},
            ],
            "predicted to fit",
        ),
    ],
)
def test_a_file_without_measurements_or_with_bad_ones_fails_with_a_clear_message(rows, message):
    with pytest.raises(AssertionError, match=message):
        hold_to_measurements({"device": "cuda", "rows": rows}, "file.json")


@pytest.fixture
def script(monkeypatch, one_simulation_process):
    """The script as a module."""
    specification = importlib.util.spec_from_file_location("validate_gpu", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "validate_gpu", module)
    specification.loader.exec_module(module)
    return module


def test_the_first_dozen_is_a_sample_of_all_and_each_is_there_once(script):
    every = script.configurations("cuda")
    assert len(set(every)) == len(every) == 200
    for part in (every[:12], every[12:24]):
        assert {one.shape for one in part} == set(script.SHAPES)
        assert {one.strategy.zero_stage for one in part} == {0, 1, 2, 3}
        assert {one.strategy.num_gpus for one in part} == {1, 8, 64}
        assert {one.accumulation for one in part} == {1, 2}
        assert {one.strategy.precision for one in part} == {"bf16", "fp32"}
        assert {one.strategy.activation_checkpointing for one in part} == {False, True}


def test_a_torch_that_the_simulation_does_not_know_is_refused_at_once(script, monkeypatch, tmp_path, capsys):
    def other_bytes(server, use_cache):
        raise SimulationError("its self-test, for it does not know torch 9")

    monkeypatch.setattr("flopsfit_ds.simulate.estimate.check_installed", other_bytes)
    with pytest.raises(SystemExit) as caught:
        script.main(["--device", "cpu", "--output", str(tmp_path / "rows.json")])
    assert caught.value.code == 2
    assert "stopped at its self-test, for it does not know torch 9" in capsys.readouterr().err
    assert not (tmp_path / "rows.json").exists()


@pytest.mark.slow
def test_a_dry_run_agrees_exactly_and_measures_nothing_twice(script, monkeypatch, tmp_path, capsys):
    (chosen,) = (
        one
        for one in script.configurations("cpu")
        if (one.strategy.zero_stage, one.strategy.num_gpus, one.accumulation) == (3, 8, 2)
    )
    monkeypatch.setattr(script, "configurations", lambda device: [chosen])
    output = tmp_path / "rows.json"
    script.main(["--device", "cpu", "--output", str(output)])
    result = json.loads(output.read_text())
    (row,) = result["rows"]
    assert (row["status"], row["relative_error"]) == ("measured", 0.0)
    assert row["measured"]["skipped_steps"] == 0
    row["reason"] = "kept"
    output.write_text(json.dumps(result))
    script.main(["--device", "cpu", "--output", str(output)])
    assert json.loads(output.read_text())["rows"] == [row]
    result["machine"]["versions"]["torch"] = "1.0"
    output.write_text(json.dumps(result))
    with pytest.raises(SystemExit):
        script.main(["--device", "cpu", "--output", str(output)])
    assert "name another --output" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_not_tried_or_takes_too_long_is_a_row_with_its_reason(script):
    cluster = resolve_cluster("bf16", device="cpu", gpus_per_node=1, host_memory=2**34)
    configuration = script.configurations("cpu")[0]
    with Simulator() as simulator:
        slow = script.compare(simulator, configuration, cluster, timeout_seconds=0.1)
        small = script.compare(simulator, configuration, replace(cluster, device_memory_bytes=2**20))
    assert (slow["status"], slow["reason"]) == ("timed out", "no answer in 0.1 s")
    assert small["status"] == "not tried"
    assert small["reason"].startswith("predicted not to fit: ")
    assert small["measured"] is small["relative_error"] is None
    assert small["predicted_peak_allocated_bytes"] > 2**20

"""The main job as a user starts it: five ways to launch, killed in the middle, run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flopsfit_ds.records import RunRecord, SweepFolder

REPOSITORY = Path(__file__).resolve().parents[2]
SWEEP = str(REPOSITORY / "scripts" / "sweep.py")
BIN = Path(sys.executable).parent
SHORT = ["design.points=[{num_params: 250k, num_tokens: 2560}, {num_params: 450k, num_tokens: 2560}, "
         "{num_params: 575k, num_tokens: 2560}]", "data.heldout_tokens=4096"]  # fmt: skip
LAUNCHERS = {
    "command": [str(BIN / "flopsfit-ds"), "sweep"],
    "script": [sys.executable, SWEEP],
    "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2", SWEEP],
    "accelerate": [str(BIN / "accelerate"), "launch", "--use_deepspeed", "--num_processes", "2", SWEEP],
    "torchrun": [str(BIN / "torchrun"), "--nproc-per-node", "2", SWEEP],
}


def start(arguments: list[str], folder: Path, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        arguments, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, **options,
    )  # fmt: skip


def run(arguments: list[str], folder: Path) -> str:
    process = start(arguments, folder)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def records_of(folder: Path) -> dict[str, RunRecord]:
    return {record.run_id: record for record in SweepFolder(folder).records()}


@pytest.mark.slow
def test_the_command_and_deepspeeds_launcher_train_the_planned_stages_to_the_same_losses(tmp_path: Path) -> None:
    assert_same_losses(["command", "deepspeed"], tmp_path)


@pytest.mark.slow
@pytest.mark.long
def test_five_ways_to_launch_train_the_planned_stages_to_the_same_losses(tmp_path: Path) -> None:
    assert_same_losses(list(LAUNCHERS), tmp_path)


def assert_same_losses(names: list[str], tmp_path: Path) -> None:
    losses: dict[str, dict[str, float | None]] = {}
    for name in names:
        run([*LAUNCHERS[name], "cpu_zero", f"output_root={name}", *SHORT], tmp_path)
        records = records_of(tmp_path / name / "cpu_zero")
        assert sorted(r.observed.zero_stage for r in records.values() if r.observed) == [0, 2, 3], name
        for record in records.values():
            assert record.observed is not None
            assert record.observed.zero_stage == record.planned.zero_stage
            assert record.observed.world_size == record.planned.world_size
            assert record.observed.num_params_total == record.planned.num_params_total
            assert record.observed.num_tokens == record.planned.num_tokens
        losses[name] = {run_id: record.loss for run_id, record in records.items()}
    for name in names:
        assert losses[name] == pytest.approx(losses["command"], abs=1e-5), name


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_killed_in_the_middle_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    command = [str(BIN / "flopsfit-ds"), "sweep", "quickstart", "design.compute_budgets=[8e9]",
               "design.sizes_per_budget=3", "design.tokens_per_parameter=20", "data.heldout_tokens=8192",
               "training.checkpoint_every=1"]  # fmt: skip
    run([*command, "output_root=undisturbed"], tmp_path)
    expected = records_of(tmp_path / "undisturbed" / "quickstart")

    folder = tmp_path / "killed" / "quickstart"
    process = start([*command, "output_root=killed"], tmp_path)
    wait_for(lambda: any(folder.glob("runs/*/checkpoint/step-*")), process)
    os.kill(process.pid, signal.SIGKILL)  # its server and workers must follow by themselves
    process.wait()
    done_before = records_of(folder)
    run([*command, "output_root=killed"], tmp_path)

    records = records_of(folder)
    assert {run_id: r.loss for run_id, r in records.items()} == {run_id: r.loss for run_id, r in expected.items()}
    for run_id, record in done_before.items():
        assert records[run_id].finished_at == record.finished_at, "a finished run was trained twice"
    assert any(attempt.start_step for record in records.values() for attempt in record.attempts), "nothing was resumed"

    assert "all 3 runs are done already" in run([*command, "output_root=killed"], tmp_path)


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the sweep never came that far"
        time.sleep(0.05)

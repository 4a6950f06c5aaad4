"""A run goes on at another number of ranks or ZeRO stage as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.base.storage import read_json
from flopsfit_ds.engine.disk.attempts import Exits, judge
from flopsfit_ds.train import worker
from flopsfit_ds.train.checkpoint.files import commit_checkpoint, newest_checkpoint
from flopsfit_ds.train.checkpoint.resume import agree_on_resume_point
from flopsfit_ds.train.order import EXIT_PREEMPTED, WorkerOrder
from helpers.train.layout_models import CountedWorkload, SingleScaleWorkload
from helpers.train.ranks import CHANGES, STEPS, Attempt, Layout, bench_of

ALONE = Layout(0, 1)
FROZEN = {"training__frozen_parameters": ["blocks.0.*", "norm.weight"]}
SCALE_ONLY = {"training__frozen_parameters": ["*norm.weight"]}
LONG_CHANGES = [
    pytest.param(before, after, marks=pytest.mark.long)
    for before, after in [
        (Layout(2, 1), Layout(2, 2)),
        (Layout(1, 2), Layout(1, 1)),
        (Layout(3, 2), Layout(3, 1)),
        (Layout(0, 2), Layout(0, 1)),
        (Layout(2, 2), Layout(1, 1)),
        (Layout(3, 2), Layout(2, 1)),
        (Layout(0, 2), Layout(2, 2)),
        (Layout(2, 2), Layout(0, 1)),
        (Layout(3, 2), Layout(0, 2)),
    ]
]


PURE = {"training__precision": "bf16-pure", "training__learning_rates": [3e-3]}


def go_on(
    server, stopped_run: Path, base: Path, layout: Layout, workload: type | None = None, **changes: Any
) -> Attempt:
    """Finish a copy of a stopped run in a layout; in a folder whose name DeepSpeed would take for a pattern."""
    bench = bench_of(server, base, layout, workload, **changes)
    bench.folder, bench.number = base / "c++ [1]", 1
    shutil.copytree(stopped_run, bench.folder)
    attempt = bench.finish()
    assert not list((bench.folder / "checkpoint").glob(".*")), "the converted checkpoint was left behind"
    return attempt


def run_id_of(run: Path) -> str:
    return read_json(next(run.glob("checkpoint/*/manifest.json")))["state"]["run_id"]


def assert_went_on(attempt: Attempt, undisturbed: Attempt) -> None:
    """From where the run was stopped, with the losses of a run that was not."""
    assert 10 <= attempt.outcome["start_step"] < STEPS - 15
    assert attempt.outcome["restarted"] is None
    assert np.abs(np.subtract(attempt.losses, undisturbed.losses)).max() <= 1e-5
    assert attempt.outcome["loss"] == pytest.approx(undisturbed.outcome["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Layout(2, 2), Layout(2, 1)),
        (Layout(3, 1), Layout(3, 2)),
        (Layout(2, 2), Layout(3, 2, offload="optimizer")),
        (Layout(0, 2), Layout(3, 1)),
        *LONG_CHANGES,
    ],
    ids=lambda layout: f"zero{layout.zero_stage}on{layout.world_size}{'' if layout.offload == 'none' else 'offload'}",
)
def test_a_run_goes_on_in_another_layout(server, trained, stopped, tmp_path, before, after):
    attempt = go_on(server, stopped(before), tmp_path, after)
    assert_went_on(attempt, trained(ALONE, **CHANGES))
    assert attempt.outcome["observed"]["zero_stage"] == after.zero_stage
    assert attempt.outcome["observed"]["world_size"] == after.world_size


def test_weights_in_bf16_go_on_in_another_layout(server, trained, stopped, tmp_path):
    """From the master weights, which are in fp32."""
    attempt = go_on(server, stopped(Layout(2, 2), **PURE), tmp_path, Layout(3, 1), **PURE)
    undisturbed = trained(Layout(2, 2), **CHANGES, **PURE)
    assert 10 <= attempt.outcome["start_step"] < STEPS - 15
    assert attempt.outcome["restarted"] is None
    assert np.abs(np.subtract(attempt.losses, undisturbed.losses)).max() <= 0.01


def test_a_run_that_changed_its_layout_is_stopped_goes_on_and_changes_again(server, trained, stopped, tmp_path):
    bench = bench_of(server, tmp_path, Layout(2, 1))
    bench.number = 1
    shutil.copytree(stopped(Layout(3, 2)), bench.folder)
    for step, layout in ((15, Layout(2, 1)), (20, Layout(2, 1)), (25, Layout(3, 1))):
        bench.layout = layout
        attempt = bench.stop_at(step, signal.SIGTERM)
        assert attempt.codes == [EXIT_PREEMPTED], attempt.logs()
        assert int(attempt.store.get("start_step")) >= step - 5
    bench.layout = ALONE
    finished = bench.finish()
    assert finished.outcome["start_step"] >= 25
    assert finished.losses == pytest.approx(trained(ALONE, **CHANGES).losses, abs=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "workload", "changes"),
    [
        (Layout(3, 2), Layout(2, 1), None, FROZEN),
        (Layout(2, 2), Layout(3, 1), CountedWorkload, {}),
        (Layout(2, 2), Layout(0, 1), CountedWorkload, {}),
    ],
    ids=["frozen-parameters", "buffers-into-zero3", "buffers-into-zero0"],
)
def test_what_is_no_trained_weight_goes_along(server, stopped, tmp_path, before, after, workload, changes):
    reference = bench_of(server, tmp_path, ALONE, workload, **changes).finish()
    attempt = go_on(server, stopped(before, workload, **changes), tmp_path, after, workload, **changes)
    assert_went_on(attempt, reference)


def test_a_layout_that_deepspeeds_loader_refuses_starts_over_and_says_why(server, stopped, tmp_path):
    """The only parameter of its group lies on rank 0: the loader would fail on rank 1."""
    run = stopped(Layout(2, 1), SingleScaleWorkload, **SCALE_ONLY)
    attempt = go_on(server, run, tmp_path, Layout(2, 2), SingleScaleWorkload, **SCALE_ONLY)
    assert attempt.outcome["start_step"] == 0
    for words in ("written by ZeRO-2 on 1 ranks", "cannot be read by ZeRO-2 on 2", "no share of a group"):
        assert words in attempt.outcome["restarted"]
        assert words in attempt.logs()
    ended = Exits({}, None, None, 0)
    assert judge(attempt.folder.attempt(attempt.number), ended) == ("completed", attempt.outcome["restarted"])


def test_a_checkpoint_that_cannot_be_converted_starts_over_and_says_why(server, trained, stopped, tmp_path):
    """Its manifest is whole, and its optimizer states are not what DeepSpeed expects."""
    run = shutil.copytree(stopped(Layout(2, 2)), tmp_path / "unknown")
    newest = newest_checkpoint(run / "checkpoint", run_id_of(run))
    assert newest is not None
    (newest.path / "manifest.json").unlink()
    torch.save({"optimizer_state_dict": {}}, next(newest.path.rglob("*_optim_states.pt")))
    commit_checkpoint(run / "checkpoint", replace(newest, path=newest.path.rename(run / "checkpoint" / "rewritten")))
    attempt = go_on(server, run, tmp_path, Layout(2, 1))
    assert attempt.outcome["start_step"] == 0
    assert "written by ZeRO-2 on 2 ranks" in attempt.outcome["restarted"]
    assert "KeyError" in attempt.outcome["restarted"]
    assert attempt.losses == pytest.approx(trained(ALONE, **CHANGES).losses, abs=1e-5)


def test_a_kill_at_any_step_of_a_conversion_loses_nothing(server, trained, stopped, tmp_path, faults):
    bench = bench_of(server, tmp_path, Layout(2, 1), None)
    bench.number = 1
    shutil.copytree(stopped(Layout(3, 2)), bench.folder)
    for step in (1, 5, 25, 60):
        (bench.folder / "die_at").write_text(f"{step} .universal.tmp")
        attempt = bench.start(checkpoint_every_seconds=1e9, target="helpers.train.kill_targets:run_worker_that_dies")
        assert attempt.wait() == [-signal.SIGKILL], attempt.logs()
        faults.inject("SIGKILL while a checkpoint is written")
    assert list((bench.folder / "checkpoint").glob(".*")), "it died too early to leave anything"
    assert_went_on(bench.finish(), trained(ALONE, **CHANGES))
    assert not list((bench.folder / "checkpoint").glob(".*"))


def test_without_room_for_a_conversion_the_checkpoint_is_kept(server, trained, stopped, tmp_path, monkeypatch):
    run = shutil.copytree(stopped(Layout(2, 2)), tmp_path / "run")
    before = sorted(path.name for path in (run / "checkpoint").iterdir())
    order = WorkerOrder(str(run), 2, 0, 1, 0, 1, None, "", 0, 1, 2, "none", 8, 1, False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    with pytest.raises(SweepFolderError, match=r"step-\d+ cannot be converted .* 1000 B are free"):
        agree_on_resume_point(order, run_id_of(run), dist.HashStore(), pulse=lambda phase: None)
    assert sorted(path.name for path in (run / "checkpoint").iterdir()) == before


def test_work_without_steps_is_not_taken_for_a_hang(stopped, tmp_path, monkeypatch):
    """Verifying, converting and committing say again and again that they go on."""
    monkeypatch.setattr(worker, "_PULSE_EVERY_SECONDS", 0.0)
    run = shutil.copytree(stopped(Layout(2, 2)), tmp_path / "run")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    order = WorkerOrder(str(run), 2, 0, 1, 0, 1, None, "127.0.0.1", store.port, 1, 2, "none", 8, 1, False)
    heartbeat = worker.Heartbeat(order)
    beats = []

    def pulse(phase: str) -> None:
        heartbeat.pulse(phase)
        beats.append(store.get("heartbeat/0").decode())

    point = agree_on_resume_point(order, run_id_of(run), store, pulse)
    assert point.saved is not None
    (point.saved.path / "manifest.json").unlink()
    rewritten = point.saved.path.rename(run / "checkpoint" / ".step-99.tmp")
    commit_checkpoint(run / "checkpoint", replace(point.saved, path=rewritten, step=99), pulse)
    assert len(set(beats)) > 10, "each is another to the engine"
    assert {beat.split()[0] for beat in beats} == {"verify", "convert", "checkpoint"}

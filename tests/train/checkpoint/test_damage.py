"""A torn or altered file is found by its checksum, dropped for the last good one, and said; and a full disk."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.base.storage import JsonLines, read_json
from flopsfit_ds.train.checkpoint.files import newest_checkpoint
from helpers.train.ranks import CHANGES, Bench, Layout, assert_same

MODEL, OPTIMIZER = "zero_pp_rank_{}_mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
SHARDS = {
    Layout(0, 1): {"mp_rank_00_model_states.pt"},
    Layout(2, 2): {"mp_rank_00_model_states.pt", OPTIMIZER.format(0), OPTIMIZER.format(1)},
    Layout(3, 2): {name.format(rank) for name in (MODEL, OPTIMIZER) for rank in range(2)},
}


def checkpoints_of(run: Path) -> list[Path]:
    """Oldest first."""
    return sorted((run / "checkpoint").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def flip_a_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << position % 8
    path.write_bytes(content)


@pytest.mark.parametrize(
    "layout",
    [Layout(0, 1), pytest.param(Layout(2, 2), marks=pytest.mark.long), Layout(3, 2)],
    ids=lambda layout: f"zero{layout.zero_stage}",
)
def test_damage_to_any_file_of_a_checkpoint_is_found_and_named(stopped, tmp_path, layout, caplog, faults):
    run = shutil.copytree(stopped(layout), tmp_path / "run")
    before, newest = checkpoints_of(run)
    run_id = read_json(newest / "manifest.json")["state"]["run_id"]
    names = {path.relative_to(newest) for path in newest.rglob("*") if path.is_file()}
    assert {path.name for path in names if path.suffix == ".pt"} == SHARDS[layout]
    generator = random.Random(0)
    for name in names:
        content = (newest / name).read_bytes()
        damages = [partial(flip_a_bit, position=generator.randrange(len(content))) for _ in range(3)]
        damages += [partial(os.truncate, length=length) for length in (0, len(content) // 2, len(content) - 2)]
        for damage in [*damages, os.unlink]:
            damage(newest / name)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                found = newest_checkpoint(run / "checkpoint", run_id)
            assert found is not None
            assert found.path == before
            assert f"{newest}: passed over" in caplog.text
            assert name.stem in caplog.text
            faults.inject("damaged checkpoint")
            (newest / name).write_bytes(content)
    (newest / "state" / "planted.pt").write_bytes(b"code of somebody else's")
    assert newest_checkpoint(run / "checkpoint", run_id).path == before
    (newest / "state" / "planted.pt").unlink()
    assert newest_checkpoint(run / "checkpoint", run_id).path == newest


@pytest.mark.parametrize(
    ("layout", "kind"),
    [(Layout(0, 1), "model"), pytest.param(Layout(3, 2), "optim", marks=pytest.mark.long)],
    ids=["zero0", "zero3"],
)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    server, stopped, trained, tmp_path, faults, layout, kind
):
    bench = Bench(server, tmp_path, layout)
    bench.number = 1
    shutil.copytree(stopped(layout), bench.folder)
    before, newest = checkpoints_of(bench.folder)
    flip_a_bit(next(newest.rglob(f"*_{kind}_states.pt")), 12345)
    resumed = bench.finish()
    assert resumed.outcome["start_step"] == int(before.name.removeprefix("step-"))
    assert f"{newest}: passed over" in resumed.logs()
    faults.inject("damaged checkpoint")
    steps = [int(path.name.removeprefix("step-")) for path in (before, newest)]
    faults.cost("damaged checkpoint", steps[1] - resumed.outcome["start_step"], allowed=steps[1] - steps[0])
    assert_same(resumed, trained(layout, **CHANGES))


def test_with_every_checkpoint_damaged_a_run_starts_over(server, stopped, trained, tmp_path):
    bench = Bench(server, tmp_path, Layout(0, 1))
    bench.number = 1
    shutil.copytree(stopped(bench.layout), bench.folder)
    for path in bench.folder.rglob("checkpoint/**/*.pt"):
        path.write_bytes(b"")
    resumed = bench.finish()
    assert resumed.outcome["start_step"] == 0
    assert_same(resumed, trained(bench.layout, **CHANGES))


def test_damaged_lines_of_metrics_are_dropped_and_said(server, stopped, trained, tmp_path, faults):
    bench = Bench(server, tmp_path, Layout(0, 1))
    bench.number = 1
    shutil.copytree(stopped(bench.layout), bench.folder)
    path = bench.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    flip_a_bit(path, sum(map(len, lines[:4])) + 30)  # in the line of step 5
    os.truncate(path, path.stat().st_size - 7)  # and the last line is torn
    resumed = bench.finish()
    faults.inject("damaged metrics line", 2)
    assert "metrics.jsonl: 2 damaged lines were dropped" in resumed.logs()
    undisturbed = trained(bench.layout, **CHANGES)
    expected = [line for line in undisturbed.folder.metrics.read() if line["step"] not in (5, len(lines))]
    found = resumed.folder.metrics.read()
    assert [(line["step"], line["loss"]) for line in found] == [(line["step"], line["loss"]) for line in expected]
    assert resumed.outcome["loss"] == undisturbed.outcome["loss"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave_bytes: int) -> None:
    with (folder / "filler").open("wb") as stream:
        stream.write(bytes(shutil.disk_usage(folder).free - leave_bytes))


def test_a_disk_too_full_for_a_checkpoint_costs_the_checkpoint_and_not_the_run(
    server, trained, tmp_path, small_disk, faults
):
    bench = Bench(server, tmp_path, Layout(2, 2))
    bench.folder = small_disk / "run"
    bench.stop_at(10, signal.SIGTERM)
    kept = checkpoints_of(bench.folder)
    fill(small_disk, leave_bytes=300_000)
    faults.inject("disk full")
    attempt = bench.start(checkpoint_every_seconds=0.0)
    assert attempt.wait() == [0, 0], attempt.logs()
    assert "no checkpoint is written: 1.1 MiB are needed and" in attempt.logs()
    assert checkpoints_of(bench.folder) == kept
    assert attempt.losses == pytest.approx(trained(Layout(0, 1), **CHANGES).losses, abs=1e-5)


def test_a_line_that_a_full_disk_takes_half_of_is_an_error_and_no_line(small_disk):
    lines = JsonLines(small_disk / "metrics.jsonl")
    lines.append({"step": 1})
    fill(small_disk, leave_bytes=0)
    with pytest.raises(
        SweepFolderError, match=r"metrics.jsonl: cannot be written: No space left on device; free space"
    ):
        lines.append({"step": 2, "note": "x" * 8000})  # the rest of the file's page still takes a part of it
    assert lines.path.stat().st_size > 4000
    (small_disk / "filler").unlink()
    lines.append({"step": 3})
    assert lines.read() == [{"step": 1}, {"step": 3}]
    assert lines.num_damaged == 1

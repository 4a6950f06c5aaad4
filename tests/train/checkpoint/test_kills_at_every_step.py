"""SIGKILL at every step of writing a checkpoint, a record or a line: the old is whole, or the new, and writing goes on.

A process ends itself just before its first, second, third ... step on the file system, until one comes to its end.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flopsfit_ds.base.storage import JsonLines, read_json, write_json
from flopsfit_ds.train.checkpoint.files import (
    SavedState,
    clear_leftovers,
    commit_checkpoint,
    newest_checkpoint,
    temporary_folder,
    verify_checkpoint,
)
from helpers.train.kill_targets import survives
from helpers.train.ranks import CHANGES, Bench, Layout


def state_of(step: int) -> bytes:
    return f"weights of step {step}".encode() * 100


def write_shards(folder: Path, step: int) -> SavedState:
    """What the ranks leave for rank 0 to commit: two files below a folder."""
    temporary = temporary_folder(folder, step)
    (temporary / "state").mkdir(parents=True)
    for rank in range(2):
        (temporary / "state" / f"rank_{rank}.pt").write_bytes(state_of(step))
    return SavedState(temporary, "run", step, 1.0, 5.5, 2, 2)


def steps_in(folder: Path) -> set[int]:
    """Of all that looks like a checkpoint; each is whole, and holds what was written."""
    found = {verify_checkpoint(path, "run").step: path for path in folder.glob("step-*")}
    for step, path in found.items():
        assert {file.read_bytes() for file in (path / "state").iterdir()} == {state_of(step)}
    return set(found)


@pytest.mark.parametrize(
    ("before", "new", "always", "after"),
    [
        ([], 5, set(), {5}),
        ([5, 10], 15, {10}, {10, 15}),
        ([5, 10], 10, {5}, {5, 10}),
        ([90, 100], 5, set(), {5}),
        ([5, 100], 10, {5}, {5, 10}),
    ],
    ids=["first", "next", "same-step-again", "started-over", "newest-passed-over"],
)
def test_a_commit_of_a_checkpoint(tmp_path, faults, before, new, always, after):
    origin = tmp_path / "origin"
    origin.mkdir()
    for step in before:
        commit_checkpoint(origin, write_shards(origin, step))
    write_shards(origin, new)
    done, number = False, 0
    while not done:
        number += 1
        folder = shutil.copytree(origin, tmp_path / "run" / str(number))
        state = SavedState(temporary_folder(folder, new), "run", new, 1.0, 5.5, 2, 2)
        done = survives(number, lambda folder=folder, state=state: commit_checkpoint(folder, state))
        left = steps_in(folder)
        assert always <= left <= {*before, new}
        clear_leftovers(folder)
        assert not list(folder.glob(".*"))
        assert newest_checkpoint(folder, "run") is not None or not before
        commit_checkpoint(folder, write_shards(folder, 200))
        assert max(steps_in(folder)) == 200
        assert len(steps_in(folder)) <= 2
        if done:
            assert left == after
    assert number > 12
    faults.inject("SIGKILL while a checkpoint is written", number - 1)


def check_every_kill(tmp_path: Path, write: Callable[[Path], None], check: Callable[[Path, bool], None]) -> int:
    """Kill a write at each of its steps, each in a folder of its own, and let `check` look at what is there then."""
    number, done = 0, False
    while not done:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        check(folder, False)
        done = survives(number, lambda folder=folder: write(folder))
        check(folder, True)
    return number - 1


@pytest.mark.parametrize("durable", [True, False])
def test_a_record(tmp_path, faults, durable):
    seen = []

    def check(folder: Path, written: bool) -> None:
        if not written:
            write_json(folder / "record.json", {"loss": 1.5})
            return
        seen.append(read_json(folder / "record.json")["loss"])
        write_json(folder / "record.json", {"loss": 3.5})
        assert read_json(folder / "record.json") == {"loss": 3.5}

    kills = check_every_kill(
        tmp_path, lambda folder: write_json(folder / "record.json", {"loss": 2.5}, durable=durable), check
    )
    assert kills >= (5 if durable else 2)  # open, sync, rename, and open and sync of the folder
    faults.inject("SIGKILL while a record is written", kills)
    assert seen == sorted(seen)
    assert set(seen) == {1.5, 2.5}


@pytest.mark.parametrize("how", ["append", "extend", "replace"])
def test_lines_of_metrics(tmp_path, how):
    old, new, later = [{"step": 1}, {"step": 2}], [{"step": 3}, {"step": 4, "loss": 5.5}], [{"step": 5}]
    wholes = {"append": [old, [*old, new[0]]], "extend": [old, [*old, new[0]], [*old, *new]], "replace": [old, new]}[
        how
    ]
    damaged = []

    def write(folder: Path) -> None:
        lines = JsonLines(folder / "metrics.jsonl")
        getattr(lines, how)(new[0] if how == "append" else new)

    def check(folder: Path, written: bool) -> None:
        lines = JsonLines(folder / "metrics.jsonl")
        if not written:
            lines.extend(old)
            return
        found = lines.read()
        assert found in wholes
        assert lines.last() == found[-1]
        lines.extend(later)
        assert lines.read() == found + later
        damaged.append(lines.num_damaged)

    assert check_every_kill(tmp_path, write, check) >= 3
    assert sum(damaged) == (0 if how == "replace" else 1), "one write was cut in half"


def test_deepspeeds_own_save_in_a_real_run(server, trained, tmp_path, faults):
    """At moments spread over a whole checkpoint: making the folder, each shard, hashing, manifest, rename, removal."""
    bench = Bench(server, tmp_path, Layout(2, 1))
    bench.folder.mkdir()
    moments, twice, done = (1, 5, 11, 35), 0, 0
    for step in moments:
        (bench.folder / "die_at").write_text(f"{step} /checkpoint/")
        attempt = bench.start(checkpoint_every_seconds=0.0, target="helpers.train.kill_targets:run_worker_that_dies")
        assert attempt.wait() == [-signal.SIGKILL], attempt.logs()
        if attempt.store.check(["start_step"]):  # it came as far as training
            twice, done = twice + done - int(attempt.store.get("start_step")), attempt.steps_done()
    finished = bench.finish()
    faults.inject("SIGKILL while a checkpoint is written", len(moments))
    faults.cost(
        "SIGKILL while a checkpoint is written", twice + done - finished.outcome["start_step"], allowed=len(moments)
    )
    assert finished.outcome["start_step"] >= 1
    assert finished.losses == trained(Layout(2, 1), **CHANGES).losses
    assert finished.outcome["loss"] == trained(Layout(2, 1), **CHANGES).outcome["loss"]

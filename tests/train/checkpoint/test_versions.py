"""Checkpoints of another version of the program: gone on from where that is sound, else said and begun again."""

from __future__ import annotations

import shutil
from dataclasses import replace

import torch
import torch.distributed as dist

from flopsfit_ds.base.storage import read_json, write_json
from flopsfit_ds.train.checkpoint.files import FORMAT, commit_checkpoint, newest_checkpoint
from flopsfit_ds.train.checkpoint.resume import agree_on_resume_point
from flopsfit_ds.train.order import EXIT_FAILED, WorkerOrder
from helpers.train.ranks import CHANGES, Bench, Layout, assert_same

OTHERS = {"flopsfit-ds": "9.9", "deepspeed": "0.99"}


def checkpoints_of(run):
    """Oldest first."""
    return sorted((run / "checkpoint").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def say_other_format(path):
    manifest = read_json(path / "manifest.json")
    write_json(path / "manifest.json", {**manifest, "program": {"format": FORMAT + 1, "versions": OTHERS}})


def choice(run):
    run_id = read_json(checkpoints_of(run)[0] / "manifest.json")["state"]["run_id"]
    order = WorkerOrder(str(run), 2, 0, 1, 0, 1, None, "", 0, 1, 0, "none", 8, 1, False)
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    return agree_on_resume_point(order, run_id, store, lambda phase: None)


def test_a_later_format_is_passed_over_for_an_older_checkpoint_and_both_are_named(stopped, tmp_path):
    run = shutil.copytree(stopped(Layout(0, 1)), tmp_path / "run")
    before, newest = checkpoints_of(run)
    assert choice(run).refused is None
    say_other_format(newest)
    point = choice(run)
    assert point.saved is not None
    assert point.saved.path == before
    why = (
        f"{newest.name}: of format {FORMAT + 1}, by flopsfit-ds 9.9, deepspeed 0.99; this program reads format {FORMAT}"
    )
    assert point.refused == f"begins at step {point.saved.step}: {why}"
    say_other_format(before)
    assert choice(run).saved is None
    assert (choice(run).refused or "").startswith(f"begins at step 0: {why}; {before.name}: ")


def test_a_manifest_without_versions_is_gone_on_from(stopped, tmp_path):
    run = shutil.copytree(stopped(Layout(0, 1)), tmp_path / "run")
    newest = checkpoints_of(run)[-1]
    manifest = read_json(newest / "manifest.json")
    assert set(manifest.pop("program")["versions"]) == {"flopsfit-ds", "deepspeed", "torch"}
    write_json(newest / "manifest.json", manifest)
    point = choice(run)
    assert point.saved is not None
    assert (point.saved.path, point.saved.program, point.refused) == (newest, {}, None)


def test_what_other_versions_wrote_and_these_cannot_load_costs_one_attempt_and_is_said(
    server, stopped, trained, tmp_path
):
    """Its manifest is whole, and its states are not what the installed DeepSpeed expects."""
    bench = Bench(server, tmp_path, Layout(0, 1))
    bench.number = 1
    shutil.copytree(stopped(bench.layout), bench.folder)
    before, path = checkpoints_of(bench.folder)
    newest = newest_checkpoint(path.parent, read_json(path / "manifest.json")["state"]["run_id"])
    assert newest is not None
    (path / "manifest.json").unlink()
    torch.save({"weights": torch.ones(3)}, next(path.rglob("*_model_states.pt")))
    shutil.move(path, path.with_name("rewritten"))
    rewritten = replace(newest, path=path.with_name("rewritten"), program=OTHERS)
    commit_checkpoint(path.parent, rewritten)
    attempt = bench.start(checkpoint_every_seconds=1e9)
    assert attempt.wait() == [EXIT_FAILED], attempt.logs()
    resumed = bench.finish()
    assert resumed.outcome["start_step"] == int(before.name.removeprefix("step-"))
    for words in (f"{path.name}: by flopsfit-ds 9.9, deepspeed 0.99", "cannot load it", "KeyError"):
        assert words in resumed.outcome["restarted"]
    assert resumed.store.get("restarted").decode() == resumed.outcome["restarted"]
    assert_same(resumed, trained(bench.layout, **CHANGES))

"""A run that goes on from its trunk's state ends as it would alone, in any layout, and without that state too."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from flopsfit_ds.engine import run_sweep
from flopsfit_ds.fit import points_from_records
from flopsfit_ds.fit.points.dependence import dependence_of
from flopsfit_ds.records import RunFolder, SweepFolder
from flopsfit_ds.study.steps import _token_task
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus
from helpers.train.ranks import Layout, start, workload_of

ALONE = Layout(0, 1, accumulation=2)
VALUES = with_values(
    MICRO,
    design__points=[{"num_params": 6e3, "num_tokens": 128 * steps} for steps in (40, 60)],
    training__schedule="wsd",
    training__warmup_tokens=640,
    training__one_trunk=True,
)


@pytest.fixture(scope="module")
def trunk(server, tmp_path_factory):
    """The plan of two runs, and the folder in which the longer has been trained."""
    base = tmp_path_factory.mktemp("trunk")
    write_bytes_corpus(base / "corpus.txt")
    plan = plan_of(VALUES, base)
    attempt = train(server, plan, plan.runs[1], base, ALONE)
    assert attempt.outcome["status"] == "completed"
    return plan, base


def train(server, plan, run, base, layout):
    folder = base / "runs" / run.run_id
    attempt = start(server, run, workload_of(plan, run, base), folder, layout)
    assert attempt.wait() == [0] * layout.world_size, attempt.logs()
    return attempt


@pytest.fixture(scope="module")
def alone(server, trunk, tmp_path_factory):
    """The shorter run, trained alone."""
    plan, base = trunk
    folder = tmp_path_factory.mktemp("alone")
    shutil.copy(base / "corpus.txt", folder)
    return train(server, plan, dataclasses.replace(plan.runs[0], branch=None), folder, ALONE)


def branch_off(server, trunk, tmp_path, layout):
    plan, base = trunk
    branch = plan.runs[0].branch
    assert branch is not None
    kept = RunFolder(base / "runs" / branch.trunk).kept(branch.step)
    shutil.copytree(kept, RunFolder(tmp_path / "runs" / branch.trunk).kept(branch.step))
    shutil.copy(base / "corpus.txt", tmp_path)
    return train(server, plan, plan.runs[0], tmp_path, layout)


@pytest.mark.parametrize("layout", [ALONE, Layout(2, 2, 2)], ids=str)
def test_a_branch_ends_as_a_run_of_its_own_would(server, trunk, alone, tmp_path, layout):
    branch = branch_off(server, trunk, tmp_path, layout)
    assert branch.outcome["start_step"] == 32
    assert alone.outcome["start_step"] == 0
    tail = [line["loss"] for line in branch.folder.metrics.read()]
    assert len(tail) == 8
    assert tail == pytest.approx(alone.losses[32:], abs=1e-5)
    assert branch.outcome["loss"] == pytest.approx(alone.outcome["loss"], abs=1e-5)


def test_a_branch_whose_trunk_lost_its_state_is_trained_from_the_start(server, trunk, alone, tmp_path):
    plan, base = trunk
    branch = plan.runs[0].branch
    shutil.copy(base / "corpus.txt", tmp_path)
    kept = RunFolder(tmp_path / "runs" / branch.trunk).kept(branch.step)
    shutil.copytree(RunFolder(base / "runs" / branch.trunk).kept(branch.step), kept)
    sorted(kept.rglob("*.pt"))[0].write_bytes(b"torn")
    attempt = train(server, plan, plan.runs[0], tmp_path, ALONE)
    assert attempt.outcome["start_step"] == 0
    assert attempt.losses == alone.losses
    assert attempt.outcome["loss"] == alone.outcome["loss"]


@pytest.mark.slow
def test_a_sweep_trains_branches_after_their_trunk_and_the_fit_knows_them(tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt")
    values = with_values(VALUES, output_root=str(tmp_path / "outputs"), placement={"num_gpus": [1]})
    values["design"]["points"].insert(1, {"num_params": 6e3, "num_tokens": 128 * 50})
    plan = plan_of(values, tmp_path)
    records = run_sweep(plan, tasks=lambda run: _token_task(plan, run))
    assert [record.status for record in records] == ["completed"] * 3
    trunk = plan.runs[2]
    assert [record.attempts[0].start_step for record in records] == [32, 40, 0]
    assert [record.trunk for record in records] == [trunk.run_id, trunk.run_id, None]
    assert [record.observed and record.observed.num_tokens for record in records] == [128 * n for n in (40, 50, 60)]
    folder = SweepFolder(plan.folder)
    assert not any((folder.run(trunk.run_id).path / "kept").iterdir())
    started = [line["run_id"] for line in folder.events.read() if line["event"] == "start"]
    assert started[0] == trunk.run_id
    points = points_from_records(records).points
    assert dependence_of(points).num_groups == 1

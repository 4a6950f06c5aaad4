"""A sweep folder that version 0.1.0 wrote and left in the middle goes on, and is read, as it lies there.

`older_sweep.tar.xz` is what that version (commit 9504527) left of nine runs: five completed, one failed for its worker
was killed, three not ended, two of them stopped by SIGTERM. Its checkpoints, data and long metrics are left out.
"""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from flopsfit_ds.cli.main import run
from flopsfit_ds.engine import give_another_chance, read_plan
from flopsfit_ds.engine.disk.attempts import read_attempts
from flopsfit_ds.records import SweepFolder


@pytest.fixture
def older(tmp_path) -> SweepFolder:
    """The folder, as that version left it."""
    with tarfile.open(Path(__file__).parent / "older_sweep.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return SweepFolder(tmp_path / "before")


def test_an_older_folder_goes_on_and_nothing_that_has_ended_is_trained_again(older, run_toys):
    plan = replace(read_plan(older.path), folder=older.path)
    ended = {each.run_id: older.run(each.run_id).read_record() for each in plan.runs}
    completed = {run_id: record for run_id, record in ended.items() if record and record.status == "completed"}
    stopped = [run_id for run_id, record in ended.items() if not record and read_attempts(older.run(run_id))]
    assert (len(plan.runs), len(completed), len(stopped)) == (9, 5, 3)
    (failed,) = give_another_chance(older)
    records = {record.run_id: record for record in run_toys(plan)}
    assert {run_id: records[run_id] for run_id in completed} == completed
    assert {record.status for record in records.values()} == {"completed"}
    assert [attempt.number for attempt in records[failed.run_id].attempts] == [1, 2]
    for run_id in stopped:
        outcomes = [attempt.outcome for attempt in records[run_id].attempts]
        assert (outcomes[0], outcomes[-1]) == ("preempted", "completed")


def test_an_older_folder_is_shown_and_fitted(older, capsys):
    assert run(["timeline", str(older.path)]) == 0
    assert "n54.2k-d1.63M" in capsys.readouterr().out
    assert run(["report", str(older.path)]) == 0
    shown = capsys.readouterr().out
    assert "left out n26.2k-d104k: status failed" in shown
    assert "N* ~ C^" in shown
    assert (older.path / "report" / "index.html").exists()

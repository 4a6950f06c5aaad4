"""What another version of the program wrote: the user is told what becomes of it, on the terminal and in the record."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from flopsfit_ds.base.storage import read_json, write_json
from flopsfit_ds.cli.main import run
from flopsfit_ds.decide import read_sources
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.study.console import Console
from flopsfit_ds.study.progress import SweepDisplay
from helpers.engine.toy import FORGOTTEN, undisturbed_loss
from helpers.run_records import OBSERVED, PLANNED, RECORD


def test_a_run_that_begins_again_says_why_at_once_and_in_its_record(make_plan, run_toys):
    plan = make_plan(1)
    shown = io.StringIO()
    in_time = []

    class Display(SweepDisplay):
        def on_restart(self, run, reason):
            super().on_restart(run, reason)
            in_time.append("loss" not in shown.getvalue())

    fault = {"fault": "kill", "fault_attempts": 1, "fault_step": 7, "forgets": range(2, 3)}
    with Display(Console(file=shown, width=200), plan) as display:
        (record,) = run_toys(plan, common=fault, progress=display)
    assert record.loss == undisturbed_loss()
    assert [attempt.start_step for attempt in record.attempts] == [0, 0]
    assert [attempt.restarted for attempt in record.attempts] == [None, f"begins at step 0: {FORGOTTEN}"]
    assert shown.getvalue().count(f"{record.label}: begins at step 0: {FORGOTTEN}") == 1
    assert in_time == [True]
    events = SweepFolder(plan.folder).events.read()
    assert [event["reason"] for event in events if event["event"] == "restarted"] == [record.attempts[1].restarted]


@pytest.fixture
def folder(tmp_path):
    """Records of eight runs, without a plan."""
    folder = SweepFolder(tmp_path)
    for number in range(8):
        planned = replace(PLANNED, num_params_total=1000 * 2**number)
        record = replace(RECORD, run_id=f"run{number}", label="", loss=3 - number / 8, planned=planned)
        folder.run(record.run_id).path.mkdir(parents=True)
        folder.run(record.run_id).write_record(record)
    return folder


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": 9}, "a record of version 9; this program knows version 1"),
        ({"loss": "2.5"}, "loss is '2.5', which no run measures"),
        ({"planned": {**vars(PLANNED), "num_params_total": 0}}, "planned.num_params_total is 0"),
        ({"planned": {**vars(PLANNED), "num_tokens": "20k"}}, "planned.num_tokens is '20k'"),
        ({"observed": {**vars(OBSERVED), "flops": -1.0}}, "observed.flops is -1.0"),
        ({"observed": {**vars(OBSERVED), "num_tokens": True}}, "observed.num_tokens is True"),
    ],
)
def test_a_record_that_cannot_be_used_is_left_out_of_a_fit_by_name(folder, changed, said):
    path = folder.run("run3").record
    write_json(path, {**read_json(path), **changed})
    source = read_sources([folder.path])
    assert len(source.points) == 7
    (gone,) = source.excluded
    assert gone.name == "run3"
    assert said in gone.reason
    assert path.exists(), "a fit only reads"


def test_a_torn_record_is_listed_among_those_left_out(folder, capsys):
    folder.run("run3").record.write_bytes(b"{")
    assert run(["audit", str(folder.path), "--json"]) in (0, 1)
    told = json.loads(capsys.readouterr().out)
    assert "run3" in json.dumps(told)

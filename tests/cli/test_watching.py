"""`status`, `timeline`, `logs` and `curves`: from the files of a sweep, while it runs, after a kill, and at its end."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import subprocess
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from flopsfit_ds.cli import main
from flopsfit_ds.cli.main import build_app
from flopsfit_ds.engine.disk.attempts import open_attempt
from flopsfit_ds.engine.disk.folder import write_plan
from flopsfit_ds.engine.disk.lease import Lease
from flopsfit_ds.engine.disk.watch import look_at
from flopsfit_ds.engine.executor import Assignment
from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.train.metrics import MetricsLog
from helpers.cli_in_process import invoke
from helpers.engine.ways import layout
from helpers.run_records import RECORD
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus

POINTS = {"method": "points", "points": [{"num_params": 6e3, "num_tokens": 12800 + 1280 * i} for i in range(4)]}
STEP_SECONDS = 0.5


@pytest.fixture
def sweep(tmp_path):
    """Four runs: one done, one in its second attempt at step 40, one failed, one waits; and the lease of a driver."""
    write_bytes_corpus(tmp_path / "corpus.txt")
    plan = plan_of(with_values(MICRO, design=POINTS), tmp_path)
    folder = SweepFolder(tmp_path / "outputs")
    folder.prepare()
    write_plan(replace(plan, folder=folder.path), folder)
    lease = Lease.acquire(folder.path / "leases")
    done, begun, failed, _ = plan.runs
    folder.log_event("plan", num_runs=4, num_slots=2, makespan_seconds=10.0, lower_bound_seconds=10.0)
    for run in (done, begun):
        folder.log_event("start", run_id=run.run_id, label=run.label, slots=["0"], layout="", predicted_seconds=5.0)
    folder.run(done.run_id).write_record(replace(RECORD, run_id=done.run_id, loss=2.5))
    folder.log_event("end", run_id=done.run_id, attempt=1, slots=["0"], outcome="completed", reason=None, seconds=2.0)
    folder.log_event("record", run_id=done.run_id, status="completed", loss=2.5)
    broken = replace(RECORD, run_id=failed.run_id, status="failed", loss=None, reason="rank 0: out of [luck]\x1b[31m")
    folder.run(failed.run_id).write_record(broken)
    open_attempt(folder.run(begun.run_id), Assignment(begun.run_id, layout(1, micro_batch=8), (Slot(0, 1, "1", "1"),)))
    (folder.run(begun.run_id).attempt(1) / "log.0.txt").write_text("hello \x1b[31mred\n")
    metrics = MetricsLog(folder.run(begun.run_id).path, 0, enabled=True, peak_memory=lambda: 3 << 30)
    for step in range(1, 41):
        metrics.log(step, 5.0 - step / 20, 1e-3, 0.5, step * STEP_SECONDS)
    metrics.flush()
    yield folder, plan
    lease.release()


def call(*arguments):
    result = CliRunner().invoke(build_app(), [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_running_sweep_is_seen_from_another_terminal(sweep):
    folder, plan = sweep
    state = look_at(folder)
    assert [run.state for run in state.runs] == ["completed", "running", "failed", "waiting"]
    assert (state.driving, state.num_slots, state.sessions) == (True, 2, 1)
    begun = state.runs[1]
    tokens = plan.runs[1].global_batch_sequences * plan.runs[1].context_length
    assert (begun.step, begun.loss, begun.slots, begun.attempt) == (40, 3.0, ("1",), 1)
    assert begun.tokens_per_second == pytest.approx(tokens / STEP_SECONDS)
    assert begun.seconds_left == pytest.approx(STEP_SECONDS * (plan.runs[1].num_steps - 40))
    assert begun.model_flops_utilisation is None, "the peak of a CPU is nominal"
    assert begun.peak_memory_bytes == 3 << 30
    share = plan.runs[1].flops * 40 / plan.runs[1].num_steps
    total = sum(run.flops for run in plan.runs)
    assert state.share_done == pytest.approx((plan.runs[0].flops + share + plan.runs[2].flops) / total)
    ratio = begun.seconds_left / (begun.weight * (1 - 40 / begun.num_steps))
    assert state.seconds_left == pytest.approx((begun.seconds_left + ratio * state.runs[3].weight) / 2)
    text = call("status", folder.path)
    assert "1 of 4 runs done, 1 running, 1 waiting, 1 failed" in text
    assert "1 of 2 slots busy" in text
    assert "out of [luck]" in text
    assert plan.runs[3].label not in text
    assert plan.runs[3].label in call("status", folder.path, "--all")
    assert json.loads(call("status", folder.path, "--json"))["runs"][1]["step"] == 40


def test_a_run_that_waits_for_samples_is_told_what_helps(sweep):
    folder, plan = sweep
    metrics = MetricsLog(folder.run(plan.runs[1].run_id).path, 40, enabled=True)
    for step, share, said in ((41, 0.04, False), (42, 0.3, True)):
        metrics.log(step, 3.0, 1e-3, 0.5, step * STEP_SECONDS, share)
        metrics.flush()
        assert look_at(folder).runs[1].waited_share == share
        text = " ".join(call("status", folder.path).split())
        assert (f"{plan.runs[1].label} waits for samples for 30% of its time" in text) is said
        assert ("training.data_workers" in text) is said


def test_a_sweep_whose_driver_is_gone_is_not_called_running(sweep):
    folder, _ = sweep
    path = folder.path / "leases" / "1"
    path.unlink()
    state = look_at(folder)
    assert [run.state for run in state.runs] == ["completed", "stopped", "failed", "waiting"]
    assert state.seconds_left is None
    assert "the driver ended before the attempt did" in call("status", folder.path)
    spans = json.loads(call("timeline", folder.path, "--json"))
    assert [span["outcome"] for span in spans] == ["completed", "interrupted"]


def test_the_timeline_shows_what_runs_now(sweep):
    folder, plan = sweep
    picture = call("timeline", folder.path, "--width", 40)
    rows = {line.partition("|")[0].strip(): line for line in picture.splitlines() if "|" in line}
    assert rows["1"].rstrip("|").rstrip(".").endswith(">")
    assert plan.runs[1].label in picture


def test_a_log_is_found_by_the_beginning_of_a_name_and_its_escapes_do_nothing(sweep):
    folder, plan = sweep
    assert call("logs", folder.path, plan.runs[1].run_id[:6]) == "hello \\x1b[31mred\n"
    several = CliRunner().invoke(build_app(), ["logs", str(folder.path), plan.runs[0].label[:2]])
    assert f"means 4 runs: {plan.runs[0].run_id}" in str(several.exception)
    none = CliRunner().invoke(build_app(), ["logs", str(folder.path), "nothing"])
    assert plan.runs[0].label in str(none.exception)
    early = CliRunner().invoke(build_app(), ["logs", str(folder.path), plan.runs[3].run_id])
    assert "no attempt has begun" in str(early.exception)


def test_curves_in_the_terminal_as_a_figure_and_as_a_table(sweep, tmp_path):
    folder, plan = sweep
    text = call("curves", folder.path, "--csv", tmp_path / "c.csv", "--svg", tmp_path / "c.svg", "--over", "steps")
    assert "training loss, nats per byte" in text
    assert f"a {plan.runs[1].label}: loss" in text
    assert "at step 40" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text())))
    assert [float(row["loss"]) for row in rows] == [5.0 - step / 20 for step in range(1, 41)]
    tokens = plan.runs[1].global_batch_sequences * plan.runs[1].context_length
    assert int(rows[-1]["tokens"]) == 40 * tokens
    assert plan.runs[1].label in (tmp_path / "c.svg").read_text()
    wrong = CliRunner().invoke(build_app(), ["curves", str(folder.path), "--over", "time"])
    assert "tokens, steps, flops" in str(wrong.exception)


@pytest.mark.parametrize("width", [40, 60, 120])
def test_pictures_are_as_wide_as_the_terminal(sweep, width, monkeypatch):
    folder, _ = sweep
    monkeypatch.setenv("COLUMNS", str(width))
    screen = io.StringIO()
    screen.isatty = lambda: True
    for command in ("timeline", "curves"):
        with contextlib.redirect_stdout(screen):
            assert main.run([command, str(folder.path)]) == 0
    lines = screen.getvalue().splitlines()
    axis = [line for line in lines if line.endswith("|")]
    assert {len(line) for line in axis} == {width}
    assert max(len(line) for line in lines) <= width


def test_lines_are_json_that_any_reader_reads(sweep):
    folder, plan = sweep
    path = folder.run(plan.runs[1].run_id).metrics.path
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41))
    if shutil.which("jq"):
        found = subprocess.run(["jq", "-s", "map(.loss) | min", path], capture_output=True, text=True, check=True)
        assert float(found.stdout) == 3.0


def test_a_damaged_plan_is_named_where_there_is_nothing_to_draw(sweep):
    folder, _ = sweep
    folder.plan.write_text('{"content": {"runs"')
    assert "|" in call("timeline", folder.path), "the events alone tell"
    folder.events.path.unlink()
    code, said = invoke("timeline", folder.path)
    assert code != 0
    assert said.startswith(f"error: {folder.plan}: torn or no plan of a sweep")


def test_logs_without_a_run_name_those_that_run_and_what_to_write(sweep):
    folder, plan = sweep
    _, said = invoke("logs", folder.path)
    assert said.startswith(f"error: which run? 1 run now: {plan.runs[1].label}; write flopsfit-ds logs ")
    assert "hello" in call(*said.strip().partition("write flopsfit-ds ")[2].split())


def test_a_run_whose_attempt_is_being_opened_still_waits(sweep):
    folder, plan = sweep
    folder.run(plan.runs[3].run_id).attempt(1).mkdir(parents=True)
    assert look_at(folder).runs[3].state == "waiting"

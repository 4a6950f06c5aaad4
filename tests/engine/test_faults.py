"""Each fault is injected into real processes; the sweep ends as an undisturbed one would."""

from __future__ import annotations

import itertools
import socket
import time

import pytest

from flopsfit_ds.base.storage import JsonLines
from flopsfit_ds.engine.progress import Silence
from flopsfit_ds.records import SweepFolder
from helpers.engine.toy import CHECKPOINT_STEPS, NUM_STEPS, steps_trained_twice, undisturbed_loss


def test_a_sweep_completes_and_is_not_repeated(make_plan, run_toys):
    plan = make_plan(3)
    records = run_toys(plan)
    assert [record.status for record in records] == ["completed"] * 3
    assert [record.loss for record in records] == [undisturbed_loss()] * 3
    before = (plan.folder / "events.jsonl").read_bytes()
    assert run_toys(plan) == records
    assert (plan.folder / "events.jsonl").read_bytes() == before


def test_the_loss_is_shown_and_not_read_at_each_beat(make_plan, run_toys, monkeypatch):
    shown, reads, last = [], [], JsonLines.last

    class Watcher(Silence):
        def on_step(self, run_id, step, loss):
            shown.append(loss)

    monkeypatch.setattr(JsonLines, "last", lambda lines: reads.append(time.monotonic()) or last(lines))
    run_toys(make_plan(1), common={"step_seconds": 0.3}, progress=Watcher())
    assert isinstance(shown[-1], float)
    assert len(shown) >= 4
    assert all(later - earlier >= 1.9 for earlier, later in itertools.pairwise(reads))


@pytest.mark.parametrize(
    ("fault", "row", "outcome", "words"),
    [
        ("kill", "SIGKILL of one rank", "killed", "rank 1 was ended by SIGKILL"),
        ("group", "SIGKILL of a worker group", "killed", "was ended by SIGKILL"),
        ("server", "SIGKILL of the fork server", "killed", "was lost with the server that forks workers"),
        ("raise", "a rank that raises or exits", "failed", "ValueError: the toy breaks"),
        ("exit", "a rank that raises or exits", "failed", "rank 1 exited with 13"),
        ("hang", "a hung rank", "hung", "rank 1 at 7"),
        ("stop", "a stopped rank (SIGSTOP)", "hung", "stopped by a signal: rank 1"),
    ],
)
def test_a_failing_rank_costs_one_attempt_of_one_point(make_plan, run_toys, faults, fault, row, outcome, words):
    faults.inject(row)
    plan = make_plan(2, num_gpus="[2]", hang_timeout=8 if outcome == "hung" else 120)
    fault_task = {"fault": fault, "fault_rank": 1, "fault_attempts": 1, "fault_step": 7, "step_seconds": 0.01}
    records = run_toys(plan, {1: fault_task})
    assert [record.loss for record in records] == [undisturbed_loss()] * 2
    assert [attempt.outcome for attempt in records[0].attempts] == ["completed"]
    first, second = records[1].attempts
    assert first.outcome == outcome
    assert words in first.reason
    assert second.outcome == "completed"
    assert second.start_step >= CHECKPOINT_STEPS, "resumed from the last checkpoint, not from the start"
    if fault == "hang":
        log = SweepFolder(plan.folder).run(plan.runs[1].run_id).attempt(1) / "log.1.txt"
        assert "_go_wrong" in log.read_text(), "a hung rank leaves its stack in the log"
    faults.cost(row, steps_trained_twice(plan.folder), allowed=CHECKPOINT_STEPS)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_global_one(make_plan, run_toys, faults):
    faults.inject("out of memory", times=2)
    plan = make_plan(1, num_gpus="[2]")
    planned = plan.runs[0].placement.strategy.micro_batch_size_per_gpu
    assert planned >= 4
    (record,) = run_toys(plan, {0: {"max_micro_batch": planned // 4}})
    assert record.loss == undisturbed_loss()
    assert [attempt.outcome for attempt in record.attempts] == ["oom", "oom", "completed"]
    sizes = [attempt.micro_batch_size_per_gpu for attempt in record.attempts]
    assert sizes == [planned, planned // 2, planned // 4]
    global_batches = {
        a.micro_batch_size_per_gpu * a.gradient_accumulation_steps * a.world_size for a in record.attempts
    }
    assert global_batches == {plan.runs[0].global_batch_sequences}
    faults.cost("out of memory", steps_trained_twice(plan.folder), allowed=0)


def test_out_of_memory_in_every_layout_is_recorded_as_such(make_plan, run_toys, faults):
    plan = make_plan(2)
    records = run_toys(plan, {0: {"max_micro_batch": 0}})
    assert [record.status for record in records] == ["oom", "completed"]
    assert "OutOfMemoryError" in records[0].reason
    tried = [(a.zero_stage, a.micro_batch_size_per_gpu, a.gradient_accumulation_steps) for a in records[0].attempts]
    assert len(tried) > 2
    faults.inject("out of memory", times=len(tried))


def test_a_diverged_point_is_final(make_plan, run_toys, faults):
    faults.inject("NaN or a diverging loss")
    plan = make_plan(2)
    records = run_toys(plan, {0: {"fault": "nan", "fault_attempts": 99}})
    assert [record.status for record in records] == ["diverged", "completed"]
    assert records[0].loss is None
    assert len(records[0].attempts) == 1
    faults.cost("NaN or a diverging loss", steps_trained_twice(plan.folder), allowed=0)


def test_a_point_that_always_fails_is_given_up_and_the_others_complete(make_plan, run_toys):
    plan = make_plan(3)
    records = run_toys(plan, {1: {"fault": "raise", "fault_attempts": 99, "fault_step": 1}})
    assert [record.status for record in records] == ["completed", "failed", "completed"]
    assert len(records[1].attempts) == 2  # of 3 that it may have: both broke at the same place of the program
    assert "the toy breaks" in records[1].reason


def test_a_point_that_gets_further_each_time_is_not_given_up(make_plan, run_toys, faults):
    faults.inject("SIGKILL of one rank", times=4)
    plan = make_plan(1)
    (record,) = run_toys(plan, {0: {"fault": "kill", "fault_attempts": 4, "fault_step": 1, "checkpoint_steps": 1}})
    assert record.loss == undisturbed_loss()
    assert [attempt.start_step for attempt in record.attempts] == [0, 1, 2, 3, 4]
    faults.cost("SIGKILL of one rank", steps_trained_twice(plan.folder), allowed=4)


def test_a_point_that_cannot_start_again_after_a_resume_is_given_up(make_plan, run_toys):
    plan = make_plan(1)
    fault = {"fault": "kill", "fault_attempts": 2, "fault_step": 7, "start_fails": range(3, 9)}
    (record,) = run_toys(plan, {0: fault})
    assert record.status == "failed"
    assert [attempt.start_step for attempt in record.attempts] == [0, 5, None, None]
    assert "no CUDA-capable device" in record.reason


def test_a_slow_rank_is_left_alone(make_plan, run_toys, faults):
    """It takes ten times as long as its peer for each step, and all together longer than `hang_timeout`."""
    faults.inject("one rank slow")
    plan = make_plan(1, num_gpus="[2]", hang_timeout=8)
    (record,) = run_toys(plan, {0: {"fault": "slow", "fault_rank": 1, "fault_attempts": 1, "step_seconds": 0.05}})
    assert record.loss == undisturbed_loss()
    assert [attempt.outcome for attempt in record.attempts] == ["completed"]
    assert record.attempts[0].seconds > plan.spec.execution.hang_timeout
    faults.cost("one rank slow", steps_trained_twice(plan.folder), allowed=0)


def test_a_taken_port_is_nobodys_concern(make_plan, run_toys, faults, monkeypatch):
    """Another program listens on the port that launchers and PyTorch would take."""
    faults.inject("port taken")
    plan = make_plan(2, num_gpus="[2]")
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        records = run_toys(plan)
    assert [record.loss for record in records] == [undisturbed_loss()] * 2
    assert [len(record.attempts) for record in records] == [1, 1]
    faults.cost("port taken", steps_trained_twice(plan.folder), allowed=0)


def test_a_clock_that_jumps_back_in_the_middle_changes_nothing(make_plan, run_toys, faults, monkeypatch):
    faults.inject("clock set forth and back")
    plan = make_plan(2)
    true_time, began = time.time, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: true_time() - (86_400 if time.monotonic() - began > 0.5 else 0))
    records = run_toys(plan, common={"step_seconds": 0.1})
    assert [record.loss for record in records] == [undisturbed_loss()] * 2
    assert [attempt.outcome for record in records for attempt in record.attempts] == ["completed"] * 2
    seconds = NUM_STEPS * 0.1
    assert all(seconds < record.attempts[0].seconds < seconds + 60 for record in records)
    finish = SweepFolder(plan.folder).events.read()[-1]
    assert seconds < finish["makespan_seconds"] < seconds + 60
    faults.cost("clock set forth and back", steps_trained_twice(plan.folder), allowed=0)

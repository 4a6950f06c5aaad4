"""What stands still for a while: a fork server, a whole job; and a terminal that is closed, a TMPDIR that is long."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil
import pytest

from flopsfit_ds.engine.fork import server
from helpers.engine.drivers import (
    checkpoints,
    finish,
    fork_server_of,
    let_go,
    start,
    sweep_folder,
    wait_until,
    wait_until_held,
)
from helpers.engine.toy import CHECKPOINT_STEPS, HELD_STEP, steps_trained_twice, undisturbed_loss


def test_a_fork_server_that_does_not_answer_is_ended_and_started_again(
    make_plan, run_toys, faults, monkeypatch, tmp_path
):
    """It is stopped while the first point runs; the second is asked of it and would wait for ever."""
    faults.inject("a fork server that does not answer")
    monkeypatch.setattr(server, "LEAST_PATIENCE_SECONDS", 3.0)
    plan = make_plan(2, slots=1, hang_timeout=30)
    stopped, go = [], tmp_path / "go"

    def stop_it():
        while not list(plan.folder.glob("runs/*/toy-steps.0.bin")):
            time.sleep(0.02)
        stopped.append(fork_server_of(os.getpid()))
        stopped[0].suspend()
        go.touch()

    threading.Thread(target=stop_it, daemon=True).start()
    records = run_toys(plan, common={"held_until": str(go)})
    assert stopped
    assert [record.loss for record in records] == [undisturbed_loss()] * 2
    assert not stopped[0].is_running() or stopped[0].status() == psutil.STATUS_ZOMBIE
    cost = steps_trained_twice(plan.folder)
    faults.cost("a fork server that does not answer", cost, allowed=CHECKPOINT_STEPS)


def test_a_driver_stops_with_checkpoints_while_its_fork_server_does_not_answer(tmp_path):
    driver = start(tmp_path, 3, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path, 2)
    stopped = fork_server_of(driver.pid)
    stopped.suspend()
    driver.send_signal(signal.SIGTERM)
    wait_until(lambda: checkpoints(tmp_path) == [HELD_STEP] * 2, tmp_path)
    stopped.resume()  # exits are known again
    assert driver.wait(120) == 75, (tmp_path / "log.txt").read_text()
    records = finish(tmp_path, 3, "[1]", 2, 0.01)
    outcomes = sorted(attempt.outcome for record in records for attempt in record.attempts)
    assert outcomes == ["completed"] * 3 + ["preempted"] * 2


@pytest.mark.slow
def test_a_job_that_was_suspended_is_no_hang(tmp_path, faults):
    """All its processes, for longer than `hang_timeout`; a machine that sleeps stops them all alike."""
    faults.inject("a job or machine suspended")
    driver = start(tmp_path, 1, "[2]", 2, 0.0, "execution.hang_timeout=8", held=True)
    wait_until_held(tmp_path, 2)
    everyone = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    for each in everyone:
        each.suspend()
    time.sleep(12)  # that it is longer than the limit is the subject
    for each in everyone:
        each.resume()
    wait_until(lambda: "stood still" in (tmp_path / "log.txt").read_text(), tmp_path)
    let_go(tmp_path)
    assert driver.wait(180) == 0, (tmp_path / "log.txt").read_text()
    (record,) = sweep_folder(tmp_path).records()
    assert record.loss == undisturbed_loss()
    assert [attempt.outcome for attempt in record.attempts] == ["completed"]
    faults.cost("a job or machine suspended", steps_trained_twice(sweep_folder(tmp_path).path), allowed=0)


def test_a_closed_terminal_stops_the_sweep_with_checkpoints(tmp_path, faults):
    faults.inject("SIGHUP: the terminal is closed")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # or a driver of tests under nohup ignores it, as it should
    driver = start(tmp_path, 1, "[2]", 2, 0.0, held=True)
    signal.signal(signal.SIGHUP, before)
    wait_until_held(tmp_path, 2)
    driver.send_signal(signal.SIGHUP)
    assert driver.wait(120) == 75, (tmp_path / "log.txt").read_text()
    (record,) = finish(tmp_path, 1, "[2]", 2, 0.01)
    assert [attempt.outcome for attempt in record.attempts] == ["preempted", "completed"]
    faults.cost("SIGHUP: the terminal is closed", steps_trained_twice(sweep_folder(tmp_path).path), allowed=0)


def test_under_nohup_a_closed_terminal_is_nothing(tmp_path):
    driver = start(tmp_path, 1, "[1]", 2, 0.0, launcher=("nohup", os.sys.executable), held=True)
    wait_until_held(tmp_path)
    driver.send_signal(signal.SIGHUP)
    let_go(tmp_path)
    assert driver.wait(120) == 0, (tmp_path / "log.txt").read_text()


def test_a_long_tmpdir_is_not_in_the_way(tmp_path):
    long = tmp_path / ("d" * 60) / ("e" * 60)
    long.mkdir(parents=True)
    finish(tmp_path, 1, "[2]", 2, 0.0, TMPDIR=str(long))
    assert not list(long.iterdir()), "and nothing is left there"

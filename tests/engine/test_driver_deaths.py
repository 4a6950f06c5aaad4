"""The driver, or everything, is killed or asked to stop; the same command goes on, and nothing is lost or left over."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from flopsfit_ds.base.storage import write_json
from flopsfit_ds.engine.fork.processes import identify
from flopsfit_ds.records import SweepFolder
from helpers.engine.drivers import (
    checkpoints,
    finish,
    kill_everything,
    let_go,
    processes_of,
    start,
    sweep_folder,
    wait_until,
    wait_until_held,
)
from helpers.engine.toy import CHECKPOINT_STEPS, HELD_STEP, steps_trained_twice, undisturbed_loss


def test_workers_die_with_their_driver_and_the_sweep_goes_on(tmp_path, faults):
    faults.inject("SIGKILL of the driver")
    process = start(tmp_path, 3, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path, 2)
    assert len(processes_of(tmp_path)) == 2
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(tmp_path), tmp_path)
    written = checkpoints(tmp_path)
    records = finish(tmp_path, 3, "[1]", 2, 0.01)
    assert sum(attempt.outcome == "interrupted" for record in records for attempt in record.attempts) == 2
    resumed = [record.attempts[1].start_step for record in records if len(record.attempts) == 2]
    assert sorted(resumed) == sorted(written), "from the last checkpoint"
    assert written == [CHECKPOINT_STEPS] * 2
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("SIGKILL of the driver", cost, allowed=2 * CHECKPOINT_STEPS)


def test_leftovers_of_a_dead_driver_are_ended_and_a_reused_pid_is_left_alone(make_plan, run_toys, faults):
    """Two processes with the pids that a dead driver's workers noted: one is the worker, the other came later."""
    faults.inject("leftovers of a dead driver")
    plan = make_plan(1)
    worker, stranger = (subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2))
    try:
        for number, (process, age) in enumerate(((worker, 0), (stranger, 100)), start=1):
            attempt = SweepFolder(plan.folder).run(plan.runs[0].run_id).attempt(number)
            attempt.mkdir(parents=True)
            noted = replace(identify(process.pid), start_time=identify(process.pid).start_time - age)
            write_json(attempt / "process.0.json", noted.to_json_dict())
        (record,) = run_toys(plan)
        assert record.loss == undisturbed_loss()
        assert worker.wait(60) == -signal.SIGKILL
        assert stranger.poll() is None
    finally:
        worker.kill()
        stranger.kill()
        stranger.wait()
    ended = [event["pid"] for event in SweepFolder(plan.folder).events.read() if event["event"] == "leftover"]
    assert ended == [worker.pid]
    faults.cost("leftovers of a dead driver", steps_trained_twice(plan.folder), allowed=0)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGINT,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.long),
    ],
)
def test_a_signal_checkpoints_and_asks_for_a_requeue(tmp_path, faults, number):
    faults.inject("SIGTERM, SIGUSR1, SIGUSR2 or SIGINT")
    process = start(tmp_path, 2, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path, 2)
    process.send_signal(number)
    assert process.wait(120) == (130 if number == signal.SIGINT else 75)
    log = (tmp_path / "log.txt").read_text()
    assert f"{number.name}: stopped after" in log
    assert "2 runs to go" in log
    records = finish(tmp_path, 2, "[1]", 2, 0.01)
    for record in records:
        first, second = record.attempts
        assert first.outcome == "preempted"
        assert second.start_step == HELD_STEP, "the checkpoint was written when the signal came, not at an interval"
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("SIGTERM, SIGUSR1, SIGUSR2 or SIGINT", cost, allowed=0)


def test_a_second_driver_refuses_and_names_the_first(tmp_path, faults):
    faults.inject("two drivers on one folder")
    process = start(tmp_path, 1, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path)
    second = start(tmp_path, 1, "[1]", 2, 0.0)
    assert second.wait(120) == 2
    assert f"the driver with pid {process.pid} on" in (tmp_path / "log.txt").read_text()
    let_go(tmp_path)
    assert process.wait(120) == 0
    faults.cost("two drivers on one folder", steps_trained_twice(sweep_folder(tmp_path).path), allowed=0)


def test_a_driver_that_lost_its_lease_stops(tmp_path):
    process = start(tmp_path, 1, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path)
    leases = sweep_folder(tmp_path).path / "leases"
    (leases / "7").write_text((leases / "1").read_text())  # another driver's, with a higher number
    assert process.wait(120) == 2
    assert "has taken this sweep over; this driver stops" in (tmp_path / "log.txt").read_text()
    assert processes_of(tmp_path) == []


def test_the_lease_of_a_stopped_driver_is_taken_over(tmp_path, faults):
    faults.inject("a stale lease")
    process = start(tmp_path, 1, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path)
    process.send_signal(signal.SIGSTOP)
    finish(tmp_path, 1, "[1]", 2, 0.01, FLOPSFIT_DS_STALE_SECONDS="3")
    process.send_signal(signal.SIGCONT)
    assert process.wait(120) == 2
    assert "this driver stops" in (tmp_path / "log.txt").read_text()
    faults.cost("a stale lease", steps_trained_twice(sweep_folder(tmp_path).path), allowed=CHECKPOINT_STEPS)


def test_killed_at_random_moments(tmp_path, faults):
    """Everything is killed at once, again and again, from the start of the driver to its end."""
    kill_at_moments(tmp_path, faults, count=5, seed=0)


@pytest.mark.slow
@pytest.mark.long
def test_killed_at_fifty_moments(tmp_path, faults):
    """Two sweeps at a time, 25 moments each."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(len(folders)) as threads:
        ends = [
            threads.submit(kill_at_moments, folder, faults, count=25, seed=seed)
            for seed, folder in enumerate(folders, start=1)
        ]
    for end in ends:
        end.result()


def kill_at_moments(folder, faults, count, seed):
    draw = random.Random(seed)
    arguments = (4, "[1]", 2, 0.02)
    kills = 0
    while kills < count:
        process = start(folder, *arguments)
        time.sleep(draw.uniform(0.0, 2.5))
        if process.poll() is not None:  # it ended before: begin a new sweep
            assert process.returncode == 0, (folder / "log.txt").read_text()
            (folder / "outputs").rename(folder / f"outputs-{kills}-{time.monotonic_ns()}")
            continue
        faults.inject("SIGKILL of everything")
        kill_everything(process)
        process.wait()
        kills += 1
    records = finish(folder, *arguments)
    assert all(record.status == "completed" for record in records)
    events = sweep_folder(folder).events.read()
    recorded = [event["run_id"] for event in events if event["event"] == "record"]
    assert len(set(recorded)) == 4
    for record in records:
        ends = [event for event in events if event["event"] == "end" and event["run_id"] == record.run_id]
        assert sum(event["outcome"] == "completed" for event in ends) <= 1, "no completed point is repeated"
    cost = sum(steps_trained_twice(outputs / "toy") for outputs in folder.glob("outputs*"))
    faults.cost("SIGKILL of everything", cost, allowed=count * 2 * CHECKPOINT_STEPS)

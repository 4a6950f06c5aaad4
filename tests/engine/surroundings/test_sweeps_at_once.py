"""Several sweeps on one machine, and several runs in one slot: what befalls one leaves the others alone."""

from __future__ import annotations

import os
import signal

from flopsfit_ds.records import SweepFolder
from helpers.engine.drivers import (
    finish,
    kill_everything,
    let_go,
    processes_of,
    start,
    sweep_folder,
    wait_until_held,
)
from helpers.engine.toy import CHECKPOINT_STEPS, steps_trained_twice, undisturbed_loss


def test_two_sweeps_at_once_and_one_of_them_killed(tmp_path, faults):
    """Each on all slots, with runs of two ranks that meet at ports of their own."""
    faults.inject("two sweeps at once on one machine")
    killed, lives = tmp_path / "killed", tmp_path / "lives"
    drivers = {}
    for folder in (killed, lives):
        folder.mkdir()
        drivers[folder] = start(folder, 2, "[2]", 2, 0.0, held=True)
    for folder in drivers:
        wait_until_held(folder, 2)
    kill_everything(drivers[killed])
    drivers[killed].wait()
    assert len(processes_of(lives)) == 2
    let_go(lives)
    assert drivers[lives].wait(120) == 0, (lives / "log.txt").read_text()
    records = list(sweep_folder(lives).records())
    assert [record.loss for record in records] == [undisturbed_loss()] * 2
    assert [len(record.attempts) for record in records] == [1, 1]
    finish(killed, 2, "[2]", 2, 0.0)
    cost = sum(steps_trained_twice(sweep_folder(folder).path) for folder in drivers)
    faults.cost("two sweeps at once on one machine", cost, allowed=CHECKPOINT_STEPS)


def test_two_runs_in_each_slot_and_one_of_them_killed(tmp_path, faults):
    faults.inject("a run killed beside others in its slot")
    arguments = (4, "[1]", 2, 0.0, "placement.points_per_gpu=2")
    driver = start(tmp_path, *arguments, held=True)
    wait_until_held(tmp_path, 4)
    workers = processes_of(tmp_path)
    assert len(workers) == 4, "two in each slot"
    os.kill(workers[0], signal.SIGKILL)
    let_go(tmp_path)
    assert driver.wait(120) == 0, (tmp_path / "log.txt").read_text()
    records = list(SweepFolder(sweep_folder(tmp_path).path).records())
    assert [record.loss for record in records] == [undisturbed_loss()] * 4
    assert sorted(record.attempts[0].slots for record in records) == [("0",), ("0",), ("1",), ("1",)]
    assert sorted(len(record.attempts) for record in records) == [1, 1, 1, 2]
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("a run killed beside others in its slot", cost, allowed=CHECKPOINT_STEPS)

"""Ctrl-C: once, however many processes a terminal and a launcher send it to, and again to end at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from flopsfit_ds.engine.disk.attempts import read_attempts
from flopsfit_ds.engine.signals import _ONE_PRESS_SECONDS
from helpers.engine.drivers import begun, processes_of, start, sweep_folder, wait_until, wait_until_held
from helpers.engine.launched_nodes import exit_codes, logs, start_nodes


def first_attempts(folder):
    paths = sorted(sweep_folder(folder).path.glob("runs/*"))
    return [read_attempts(sweep_folder(folder).run(path.name))[0] for path in paths]


def wait_for_first_steps(folder, num_runs):
    """Until so many runs are in their first step."""
    wait_until(lambda: begun(folder) >= num_runs, folder)


def test_one_ctrl_c_that_reaches_every_rank_leaves_checkpoints(tmp_path):
    processes = start_nodes(tmp_path, 1, 2, 2, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path, 2)
    for process in processes * 2:  # the terminal's, and what the launcher passes on
        process.send_signal(signal.SIGINT)
    assert exit_codes(processes) == [130, 130], logs(tmp_path)
    assert [attempt.outcome for attempt in first_attempts(tmp_path)] == ["preempted"] * 2


@pytest.mark.slow
@pytest.mark.long
def test_one_ctrl_c_in_the_terminal_of_a_real_launcher(tmp_path):
    torchrun = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2")
    process = start(tmp_path, 2, "[1]", 2, 3, "execution.hang_timeout=600", launcher=torchrun)
    wait_for_first_steps(tmp_path, 2)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(120)
    wait_until(lambda: not processes_of(tmp_path), tmp_path)
    assert [attempt.outcome for attempt in first_attempts(tmp_path)] == ["preempted"] * 2


def test_a_second_ctrl_c_a_while_later_ends_at_once(tmp_path):
    process = start(tmp_path, 1, "[1]", 1, 60, "execution.hang_timeout=600")
    wait_for_first_steps(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: any(event["event"] == "stop" for event in sweep_folder(tmp_path).events.read()), tmp_path)
    time.sleep(_ONE_PRESS_SECONDS + 0.1)  # that a while lies between them is the subject
    assert process.poll() is None, "it waits for a checkpoint"
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert [attempt.outcome for attempt in first_attempts(tmp_path)] == ["interrupted"]

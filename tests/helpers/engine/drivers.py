"""Drivers of toy sweeps as processes of their own: started, waited for and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flopsfit_ds.engine.fork.processes import ProcessIdentity
from flopsfit_ds.records import SweepFolder
from helpers.engine.toy import HELD_STEP, undisturbed_loss

SCRIPT = Path(__file__).with_name("toy_sweep.py")


def start(folder, *arguments, launcher=(sys.executable,), held=False, **environment):
    """The driver of a sweep of toys; with `held`, each of them waits in the middle until `let_go`."""
    if held:
        environment["TOY_HELD_UNTIL"] = str(folder / "go")
    log = (folder / "log.txt").open("a")
    command = [*launcher, str(SCRIPT), str(folder / "outputs"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment}, start_new_session=True)


def let_go(folder):
    """Toys that were held, and those that start from now on, go on to their end."""
    (folder / "go").touch()


def sweep_folder(folder):
    return SweepFolder(folder / "outputs" / "toy")


def wait_until(condition, folder, timeout=120):
    """Until something has come about in a sweep; its log where it has not."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("\n".join(path.read_text() for path in sorted(folder.glob("log*.txt"))))


def checkpoints(folder):
    """Steps of the newest checkpoint of each run that has one."""
    paths = sorted(sweep_folder(folder).path.glob("runs/*/toy-checkpoint.0.json"))
    return [json.loads(path.read_text())[0] for path in paths]


def begun(folder):
    """How many ranks, of all runs together, are in their first step or further."""
    return len(list(sweep_folder(folder).path.glob("runs/*/toy-steps.*.bin")))


def wait_until_held(folder, num_ranks=1, timeout=120):
    """Until so many ranks, of all runs together, wait in the middle: each has trained on since its checkpoint."""
    counts = "runs/*/toy-steps.*.bin"

    def are_held():
        paths = sweep_folder(folder).path.glob(counts)
        return sum(sum(times > 0 for times in path.read_bytes()) == HELD_STEP for path in paths) >= num_ranks

    wait_until(are_held, folder, timeout)


def wait_for_steps(folder, minimum, timeout=120):
    """Until the toys have written checkpoints of so many steps in all."""
    wait_until(lambda: sum(checkpoints(folder)) >= minimum, folder, timeout)


def processes_of(folder):
    """Pids of all workers of the sweep that still run; a pid that is another process by now is none of them."""
    notes = sweep_folder(folder).path.glob("runs/*/attempt-*/process.*.json")
    workers = [ProcessIdentity(**json.loads(note.read_text())["content"]) for note in notes]
    return [worker.pid for worker in workers if worker.is_alive]


def finish(folder, *arguments, **environment):
    process = start(folder, *arguments, **environment)
    assert process.wait(240) == 0, (folder / "log.txt").read_text()
    records = list(sweep_folder(folder).records())
    assert [record.loss for record in records] == [undisturbed_loss()] * int(arguments[0])
    return records


def kill_everything(driver):
    """The driver, its server and all workers; it is stopped first, so that it sees none of the others end."""
    driver.send_signal(signal.SIGSTOP)
    for process in [*psutil.Process(driver.pid).children(recursive=True), driver]:
        with suppress(psutil.NoSuchProcess):
            process.kill()

"""Drivers of toy sweeps as processes of their own: started, waited for and killed."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flopsfit_ds.engine.fork.processes import ProcessIdentity
from flopsfit_ds.records import SweepFolder
from helpers.engine.toy import HELD_STEP, undisturbed_loss
from helpers.forking import ForkingServer

SCRIPT = Path(__file__).with_name("toy_sweep.py")
_MODULES = (
    "torch.distributed",
    "torch._C._distributed_c10d",
    "flopsfit_ds.engine.sweep",
    "flopsfit_ds.engine.nodes.agent",
    "helpers.engine.toy_sweep",
    "helpers.engine.impatient_sweep",
    "helpers.engine.forked_driver",
)


@functools.cache
def _forking_server() -> ForkingServer:
    """Of this process, started with the first driver that it needs."""
    server = ForkingServer(_MODULES)
    atexit.register(server.close)
    return server


class Driver:
    """A driver that was forked, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float = 240.0) -> int:
        """Its exit code, or the negated signal.

        Raises:
            subprocess.TimeoutExpired: It runs on.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(SCRIPT), timeout)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None:
            (self.returncode,) = _forking_server().wait([self.pid], 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(folder, *arguments, launcher=(), held=False, **environment):
    """The driver of a sweep of toys; with `held`, each of them waits in the middle until `let_go`."""
    if held:
        environment["TOY_HELD_UNTIL"] = str(folder / "go")
    environment = {**os.environ, **environment}
    arguments = [str(folder / "outputs"), *map(str, arguments)]
    log = folder / "log.txt"
    if not launcher:
        return start_forked("toy_sweep", log, environment, arguments)
    with log.open("a") as stream:
        return subprocess.Popen(
            [*launcher, str(SCRIPT), *arguments], stdout=stream, stderr=stream, env=environment, start_new_session=True
        )


def start_forked(script, log, environment, arguments):
    """One of this folder's scripts as a driver in a session of its own, without the seconds in which it imports."""
    return Driver(_forking_server().start("helpers.engine.forked_driver:run", script, log, environment, arguments))


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


def fork_server_of(pid):
    """Of a driver whose workers run: of its children the one that leads a session."""
    return next(child for child in psutil.Process(pid).children() if os.getsid(child.pid) == child.pid)


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

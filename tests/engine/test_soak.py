"""Many tiny points under a random fault every few seconds: the sweep ends complete, and equal to one left in peace.

PYTHONPATH=tests python tests/engine/test_soak.py 200 2.0 0     points, seconds between faults, seed: prints a table
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from helpers.engine.drivers import fork_server_of, kill_everything, processes_of, start, sweep_folder
from helpers.engine.toy import steps_trained_twice, undisturbed_loss


def one_worker(folder, draw):
    workers = processes_of(folder)
    return draw.choice(workers) if workers else None


def kill_worker(folder, driver, draw):
    os.kill(one_worker(folder, draw), signal.SIGKILL)


def stop_worker(folder, driver, draw):
    os.kill(one_worker(folder, draw), signal.SIGSTOP)


def kill_group(folder, driver, draw):
    for pid in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_server(folder, driver, draw):
    fork_server_of(driver.pid).kill()


def kill_driver(folder, driver, draw):
    driver.kill()


def ask_to_stop(folder, driver, draw):
    if draw.random() < 0.5:
        driver.send_signal(draw.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))
    else:
        os.kill(one_worker(folder, draw), signal.SIGTERM)


def damage_record(folder, driver, draw):
    path = draw.choice(sorted(sweep_folder(folder).path.glob("runs/*/record.json")))
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(7)
    path.write_bytes(content)


def tear_events(folder, driver, draw):
    with sweep_folder(folder).events.path.open("ab") as stream:
        stream.write(b'deadbeef {"event": "torn"')


FAULTS = {
    "SIGKILL of one rank": kill_worker,
    "a stopped rank (SIGSTOP)": stop_worker,
    "SIGKILL of a worker group": kill_group,
    "SIGKILL of the fork server": kill_server,
    "SIGKILL of the driver": kill_driver,
    "SIGKILL of everything": lambda folder, driver, draw: kill_everything(driver),
    "SIGTERM, SIGUSR1, SIGUSR2 or SIGINT": ask_to_stop,
    "damaged record": damage_record,
    "damaged events line": tear_events,
}


def soak(folder: Path, num_points: int, every_seconds: float, seed: int) -> Counter[str]:
    """Run a sweep to its end under faults; how often each was injected."""
    draw, injected = random.Random(seed), Counter[str]()
    arguments = (num_points, "[1, 2]", 2, 0.02, "execution.max_attempts=20")
    driver, next_fault = start(folder, *arguments), time.monotonic() + 4
    while True:
        code = driver.poll()
        if code == 0:
            break
        if code is not None:
            # killed, stopped, or signalled while Python was still loading
            assert code in (-9, 75, 130, -15, -10, -2), f"{code}: {(folder / 'log.txt').read_text()[-3000:]}"
            driver = start(folder, *arguments)
            next_fault = max(next_fault, time.monotonic() + draw.uniform(0, 8))
        if time.monotonic() > next_fault:
            fault = draw.choice(list(FAULTS))
            with suppress(
                ProcessLookupError, psutil.NoSuchProcess, TypeError, IndexError, StopIteration
            ):  # nobody there to hit
                FAULTS[fault](folder, driver, draw)
                injected[fault] += 1
            next_fault = time.monotonic() + draw.uniform(0.5, 1.5) * every_seconds
        time.sleep(0.05)
    return injected


def check(folder: Path, num_points: int) -> dict[str, int]:
    """See that nothing was lost, repeated or left over; what it cost."""
    end = start(folder, num_points, "[1, 2]", 2, 0.02, "execution.max_attempts=20")
    assert end.wait(120) == 0, (folder / "log.txt").read_text()[-3000:]
    records = list(sweep_folder(folder).records())
    assert [record.loss for record in records] == [undisturbed_loss()] * num_points
    assert processes_of(folder) == []
    for record in records:
        completed = [attempt for attempt in record.attempts if attempt.outcome == "completed"]
        assert len(completed) == 1, "no completed point is trained again"
    outcomes = Counter(attempt.outcome for record in records for attempt in record.attempts)
    return {**outcomes, "points": num_points, "steps trained twice": steps_trained_twice(sweep_folder(folder).path)}


@pytest.mark.slow
@pytest.mark.long
def test_a_small_soak(tmp_path, faults):
    for fault, times in soak(tmp_path, 25, 1.5, seed=0).items():
        faults.inject(fault, times)
        faults.cost_unknown(fault, "in the soak, where faults hit one another")
    check(tmp_path, 25)


if __name__ == "__main__":
    points, every, chosen_seed = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        counts = soak(Path(name), points, every, chosen_seed)
        result = check(Path(name), points)
        sys.stdout.write(
            json.dumps({"seconds": time.monotonic() - began, "faults": counts, "attempts": result}, indent=1)
        )

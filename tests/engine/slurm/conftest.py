"""A real SLURM of two nodes on this machine, started by scripts/slurm_testbed.sh where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flopsfit_ds.records import SweepFolder
from helpers.engine.drivers import SCRIPT
from helpers.engine.toy import undisturbed_loss

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def slurm_conf():
    """The testbed's settings; started if need be, and then ended at the end."""
    script = ROOT / "scripts" / "slurm_testbed.sh"
    missing = [name for name in ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd") if not shutil.which(name)]
    if missing or os.getuid() != 0:
        pytest.skip(f"no SLURM here (missing: {missing}, uid {os.getuid()}); as root: {script} install")
    folder = Path(os.environ.get("FLOPSFIT_DS_SLURM_FOLDER", f"{tempfile.gettempdir()}/flopsfit-ds-slurm"))
    was_running = (folder / "slurmctld.pid").exists()
    answer = subprocess.run(["bash", str(script), "start"], capture_output=True, text=True, timeout=120, check=False)
    if answer.returncode:
        pytest.skip(f"the SLURM testbed does not start here: {answer.stderr[-300:]}")
    yield answer.stdout.strip().rpartition("=")[2]
    if not was_running:
        subprocess.run(["bash", str(script), "stop"], check=True, timeout=120)


@pytest.fixture
def cluster(slurm_conf, tmp_path):
    """Runs commands of the cluster, and sweeps of toys on it; ends all jobs afterwards."""
    yield Cluster(slurm_conf, tmp_path)
    subprocess.run(["scancel", "--user=root"], env={**os.environ, "SLURM_CONF": slurm_conf}, check=True, timeout=120)


class Cluster:
    def __init__(self, slurm_conf, folder):
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": slurm_conf,
            "TOY_EXECUTOR": "slurm",
            "PYTHONPATH": str(ROOT / "tests"),
        }

    def call(self, *command):
        answer = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=True, cwd=self.folder
        )
        return answer.stdout

    def start(self, *arguments, held=False):
        log = (self.folder / "log.txt").open("a")
        command = [sys.executable, str(SCRIPT), str(self.folder / "outputs"), *map(str, arguments)]
        environment = self.environment | ({"TOY_HELD_UNTIL": str(self.folder / "go")} if held else {})
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    @property
    def log(self):
        return (self.folder / "log.txt").read_text()

    @property
    def sweep(self):
        return SweepFolder(self.folder / "outputs" / "toy")

    def finish(self, *arguments, timeout=240):
        process = self.start(*arguments)
        assert process.wait(timeout) == 0, self.log
        records = list(self.sweep.records())
        assert [record.loss for record in records] == [undisturbed_loss()] * int(arguments[0])
        return records

    def job_ids(self):
        path = self.sweep.path / "slurm" / "jobs.jsonl"
        return [json.loads(line)["job_id"] for line in path.read_text().splitlines()]

    def wait_for_words(self, words, timeout=180):
        path, deadline = self.folder / "words", time.monotonic() + timeout
        while not path.exists() or path.read_text().split() != words.split():
            assert time.monotonic() < deadline, path.read_text() if path.exists() else "not started"
            time.sleep(0.2)

    def wait_for_state(self, job, state):
        deadline = time.monotonic() + 120
        while self.call("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip() != state:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def node_of(self, job):
        return self.call("squeue", "-h", "-j", job, "-o", "%N").strip()

    def kill_node(self, name):
        """As a machine that loses its power: SIGKILL of its daemon, of the steps there and of all in them."""
        daemon = int((Path(self.environment["SLURM_CONF"]).parent / f"slurmd.{name}.pid").read_text())
        steps = [each for each in psutil.process_iter() if each.name().startswith("slurmstepd") and _is_on(each, name)]
        doomed = [psutil.Process(daemon), *steps, *(child for step in steps for child in step.children(recursive=True))]
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def start_node(self, name):
        self.call("slurmd", "-f", self.environment["SLURM_CONF"], "-N", name)

    def wait_for_node(self, name, *states):
        deadline = time.monotonic() + 120
        while (found := self.call("sinfo", "-h", "-N", "-n", name, "-p", "main", "-o", "%T").strip()) not in states:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


def _is_on(step, node):
    """Whether a step, which does not say it itself, is on a node: whatever it has started knows."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return any(child.environ().get("SLURMD_NODENAME") == node for child in step.children())
    return False

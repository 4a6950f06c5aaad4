"""Two network namespaces as two hosts: `deepspeed --hostfile`, real gloo across the link, a point that spans both."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flopsfit_ds.records import SweepFolder
from helpers.engine.drivers import SCRIPT, let_go, sweep_folder, wait_until, wait_until_held
from helpers.engine.toy import CHECKPOINT_STEPS, steps_trained_twice, undisturbed_loss

ROOT = Path(__file__).parents[3]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
LINKS = ("ffa", "ffb")
SPEC = """
name: hosts
output_root: {root}
model: {{vocab_size: 256, context_length: 32, head_dim: 8, width_per_layer: 32}}
data: {{source: python-stdlib, heldout_tokens: 2k}}
design: {{method: points, points: [{{num_params: 11k, num_tokens: 20k}}]}}
training: {{global_batch_tokens: 1024, learning_rates: [6e-3], precision: fp32}}
hardware: {{device: cpu, gpus_per_node: 1, num_nodes: 2}}
placement: {{num_gpus: [2], zero_stages: [2]}}
"""


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def two_hosts():
    """Two namespaces joined by one link; their names."""
    names = tuple(f"flopsfit{os.getpid()}{letter}" for letter in "ab")
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip to make network namespaces")
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    ip("netns", "add", names[1])
    try:
        ip("link", "add", "ffa", "netns", names[0], "type", "veth", "peer", "name", "ffb", "netns", names[1])
        for name, link, address in zip(names, LINKS, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def start_host(names, rank, folder, *arguments, **environment):
    """What a user types on one of two hosts."""
    hosts, bin_folder = folder / "hostfile", Path(sys.executable).parent
    hosts.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    command = ["ip", "netns", "exec", names[rank], str(bin_folder / "deepspeed"), "--hostfile", str(hosts), "--no_ssh"]
    command += ["--node_rank", str(rank), "--master_addr", ADDRESSES[0], "--master_port", "29611"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": LINKS[rank], "DS_ACCELERATOR": "cpu", **environment}
    environment["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
    with (folder / f"log.{rank}.txt").open("a") as log:
        return subprocess.Popen([*command, *map(str, arguments)], stdout=log, stderr=log, env=environment)


@pytest.mark.slow
@pytest.mark.long
def test_a_host_that_loses_its_power_and_comes_back(two_hosts, tmp_path, faults):
    """Its link is cut, so that nobody hears of its end, and everything on it is killed."""
    faults.inject("a node lost, and back")
    toys = (SCRIPT, tmp_path / "outputs", 1, "[2]", 1, "0.0", "hardware.num_nodes=2")
    settings = {"TOY_HELD_UNTIL": str(tmp_path / "go"), "PYTHONPATH": str(ROOT / "tests")}
    driver, lost = (start_host(two_hosts, rank, tmp_path, *toys, **settings) for rank in range(2))
    wait_until_held(tmp_path, 2)
    ip("-n", two_hosts[1], "link", "set", LINKS[1], "down")
    pids = subprocess.run(["ip", "netns", "pids", two_hosts[1]], capture_output=True, text=True, check=True).stdout
    for pid in pids.split():
        os.kill(int(pid), signal.SIGKILL)
    lost.wait(60)
    ip("-n", two_hosts[1], "link", "set", LINKS[1], "up")
    back = start_host(two_hosts, 1, tmp_path, *toys, **settings)
    folder = sweep_folder(tmp_path)
    wait_until(lambda: [event["event"] for event in folder.events.read()].count("start") == 2, tmp_path, timeout=240)
    let_go(tmp_path)
    assert [process.wait(240) for process in (driver, back)] == [0, 0], (tmp_path / "log.0.txt").read_text()
    (record,) = folder.records()
    assert record.loss == undisturbed_loss()
    assert [attempt.outcome for attempt in record.attempts] == ["interrupted", "completed"]
    assert record.attempts[1].start_step == CHECKPOINT_STEPS
    faults.cost("a node lost, and back", steps_trained_twice(folder.path), allowed=CHECKPOINT_STEPS)


@pytest.mark.slow
@pytest.mark.long
def test_deepspeed_with_a_hostfile_over_two_namespaces(two_hosts, tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC.format(root=tmp_path))
    arguments = (ROOT / "scripts" / "sweep.py", tmp_path / "spec.yaml")
    processes = [start_host(two_hosts, rank, tmp_path, *arguments) for rank in range(2)]
    for process in processes:
        process.wait(300)
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(tmp_path.glob("log.*.txt")))
    records = list(SweepFolder(tmp_path / "hosts").records())
    assert [record.status for record in records] == ["completed"], logs
    assert records[0].observed is not None
    assert (records[0].observed.world_size, records[0].observed.zero_stage) == (2, 2)
    first, second = (slot.rpartition(":")[0] for slot in records[0].attempts[-1].slots)
    assert first != second, "the two ranks are on different hosts"

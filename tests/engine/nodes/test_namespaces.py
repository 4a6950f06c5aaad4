"""Two network namespaces as two hosts: `deepspeed --hostfile`, real gloo across the link, a point that spans both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flopsfit_ds.records import SweepFolder

ROOT = Path(__file__).parents[3]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
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
        for name, link, address in zip(names, ("ffa", "ffb"), ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


@pytest.mark.slow
@pytest.mark.long
def test_deepspeed_with_a_hostfile_over_two_namespaces(two_hosts, tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC.format(root=tmp_path))
    hosts = tmp_path / "hostfile"
    hosts.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    bin_folder = Path(sys.executable).parent
    processes = []
    for rank, (name, link) in enumerate(zip(two_hosts, ("ffa", "ffb"), strict=True)):
        log = (tmp_path / f"log.{rank}.txt").open("w")
        command = ["ip", "netns", "exec", name, str(bin_folder / "deepspeed"), "--hostfile", str(hosts), "--no_ssh"]
        command += ["--node_rank", str(rank), "--master_addr", ADDRESSES[0], "--master_port", "29611"]
        command += [str(ROOT / "scripts" / "sweep.py"), str(tmp_path / "spec.yaml")]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": link, "DS_ACCELERATOR": "cpu"}
        environment["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    for process in processes:
        process.wait(300)
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(tmp_path.glob("log.*.txt")))
    records = list(SweepFolder(tmp_path / "hosts").records())
    assert [record.status for record in records] == ["completed"], logs
    assert records[0].observed is not None
    assert (records[0].observed.world_size, records[0].observed.zero_stage) == (2, 2)
    first, second = (slot.rpartition(":")[0] for slot in records[0].attempts[-1].slots)
    assert first != second, "the two ranks are on different hosts"

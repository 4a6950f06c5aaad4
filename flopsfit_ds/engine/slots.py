"""Slots: the places, one device each, on which points run side by side."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.base.hardware import Cluster, launched_world, visible_entries

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Slot:
    """One device of one node.

    Attributes:
        node: Number of the node; 0 is the driver's.
        index: Number of the device on its node.
        device: Its entry for CUDA_VISIBLE_DEVICES (a number, or the UUID of a slice); None on a CPU.
        name: For people: `3`, or `node1:3` where there are several nodes.
    """

    node: int
    index: int
    device: str | None
    name: str


@dataclass(frozen=True)
class NodeSlots:
    """The slots of one node.

    Attributes:
        node: Number of the node.
        hostname: Its name.
        devices: Entries for CUDA_VISIBLE_DEVICES; None for each slot of a CPU.
        threads_per_slot: CPU threads that one slot may use.
    """

    node: int
    hostname: str
    devices: tuple[str | None, ...]
    threads_per_slot: int

    def slots(self, prefix: str) -> tuple[Slot, ...]:
        """The slots, named by the prefix and their number."""
        return tuple(Slot(self.node, i, device, f"{prefix}{i}") for i, device in enumerate(self.devices))


def slots_of_this_node(
    cluster: Cluster, num_slots: int | None, environment: Mapping[str, str] | None = None, node: int = 0
) -> NodeSlots:
    """What this node has to offer: under a launcher its ranks, else its visible GPUs, or CPU slots.

    Args:
        cluster: What the plan was made for; says whether devices are GPUs, and how many slots a CPU has by default.
        num_slots: `--slots`: use so many; None for all.
        environment: Of the process.
        node: Number of the node.

    Raises:
        LaunchError: There are fewer devices than the launcher's ranks or `--slots` ask for, or none.
    """
    environment = os.environ if environment is None else environment
    launched = launched_world(environment)
    asked = launched[1] if launched else num_slots
    if launched and num_slots is not None and num_slots != launched[0]:
        raise LaunchError(
            f"--slots {num_slots}: the launcher started {launched[0]} ranks, and each is a slot; leave --slots out"
        )
    if cluster.kind == "cuda":
        devices: tuple[str | None, ...] = tuple(visible_devices(environment))
        if not devices:
            raise LaunchError(
                f"the plan is for {cluster.device_name} and this machine shows no GPU to nvidia-smi; "
                "write hardware.device: cpu to train on the CPU"
            )
        if asked is not None and asked > len(devices):
            who = "the launcher started" if launched else "--slots asks for"
            raise LaunchError(
                f"{who} {asked} slots on this node and it shows {len(devices)} GPUs ({', '.join(map(str, devices))}); "
                "start one rank a GPU, and let every rank see all GPUs of its node"
            )
        devices = devices[:asked]
    else:
        devices = (None,) * (asked or cluster.gpus_per_node)
    threads = max(1, len(os.sched_getaffinity(0)) // len(devices))
    return NodeSlots(node, socket.gethostname(), devices, threads)


def visible_devices(environment: Mapping[str, str]) -> list[str]:
    """GPUs that a worker of this process could use, as entries for CUDA_VISIBLE_DEVICES; CUDA itself is not touched.

    UUIDs become the numbers of `nvidia-smi`, which workers count by (CUDA_DEVICE_ORDER=PCI_BUS_ID): where `pynvml` is
    installed, DeepSpeed reads every entry as a number. Slices of a GPU (MIG) have none and keep their UUID.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index,uuid", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
    visible = visible_entries(environment)
    if visible is None:
        return [index for index, _ in rows]
    entries = []
    for entry in visible:
        number = next((index for index, uuid in rows if entry == index or (entry and uuid.startswith(entry))), None)
        if number is None and not entry.startswith("MIG-"):
            break  # CUDA ignores everything from the first entry that it does not know
        entries.append(entry if number is None else number)
    if any(entry.startswith("MIG-") for entry in entries) and importlib.util.find_spec("pynvml") is not None:
        _logger.warning(
            "CUDA_VISIBLE_DEVICES names MIG slices, which have no number, and pynvml is installed: DeepSpeed 0.19 then "
            "fails at the start of ZeRO-1 and 2 (int() of the entry); uninstall nvidia-ml-py or pynvml, or plan with "
            "placement.zero_stages: [0, 3]"
        )
    return entries

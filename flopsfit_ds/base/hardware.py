"""Devices and machines: the table of GPUs, what this machine has, and the cluster a sweep is planned for.

Only `read_machine` looks at the machine; everything else is a function of its arguments. No torch: the
planner must answer on a laptop.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flopsfit_ds.base.errors import LaunchError, SpecError
from flopsfit_ds.base.units import GIB

_MAX_AUTOMATIC_CPU_SLOTS = 8
"""A slot is a process of its own that loads PyTorch; more of them are for `--slots` to ask for. Chosen."""
# How users and SLURM write "no GPU" into CUDA_VISIBLE_DEVICES
_NO_GPU = ("", "-1", "none", "void", "nodevfiles")


@dataclass(frozen=True)
class Device:
    """One kind of device.

    Attributes:
        name: As written in a spec.
        memory_bytes: What CUDA reports as total, which is less than the name and `nvidia-smi` say.
        bf16_flops: Dense bf16 FLOP/s by the data sheet, without sparsity.
        fp32_flops: fp32 FLOP/s by the data sheet, outside the tensor cores.
        intra_node_bandwidth: Bytes a second to another device of the node, each way.
        aliases: How `nvidia-smi` may name it.
    """

    name: str
    memory_bytes: int
    bf16_flops: float
    fp32_flops: float
    intra_node_bandwidth: float
    aliases: tuple[str, ...] = ()


def _gib(number: float) -> int:
    return int(number * GIB)


# Sources: NVIDIA's data sheets of each product (dense FLOP/s; NVLink or PCIe, halved to one direction). Memory is what
# CUDA can allocate of in all, as PyTorch's out-of-memory messages give it ("GPU 0 has a total capacity of 79.10 GiB"):
# the driver keeps 0.4 to 0.9 GiB of what `nvidia-smi` calls total. Where drivers differ, the lowest that was found.
DEVICES: tuple[Device, ...] = (
    Device("A100-SXM-40GB", _gib(39.38), 312e12, 19.5e12, 300e9, ("NVIDIA A100-SXM4-40GB",)),
    Device("A100-SXM-80GB", _gib(79.14), 312e12, 19.5e12, 300e9, ("NVIDIA A100-SXM4-80GB",)),
    Device("A100-PCIE-40GB", _gib(39.38), 312e12, 19.5e12, 32e9, ("NVIDIA A100-PCIE-40GB",)),
    Device("A100-PCIE-80GB", _gib(79.14), 312e12, 19.5e12, 32e9, ("NVIDIA A100 80GB PCIe",)),
    Device("H100-SXM", _gib(79.10), 989e12, 67e12, 450e9, ("NVIDIA H100 80GB HBM3",)),
    Device("H100-PCIE", _gib(79.10), 756e12, 51e12, 64e9, ("NVIDIA H100 PCIe",)),
    Device("H100-NVL", _gib(93.00), 835e12, 60e12, 300e9, ("NVIDIA H100 NVL",)),
    Device("H200-SXM", _gib(139.80), 989e12, 67e12, 450e9, ("NVIDIA H200",)),
    Device("B200-SXM", _gib(178.35), 2250e12, 75e12, 900e9, ("NVIDIA B200",)),
    Device("L4", _gib(22.03), 121e12, 30.3e12, 32e9, ("NVIDIA L4",)),
    Device("L40S", _gib(44.40), 362e12, 91.6e12, 32e9, ("NVIDIA L40S",)),
    Device("A10", _gib(21.99), 125e12, 31.2e12, 32e9, ("NVIDIA A10",)),
    Device("A10G", _gib(22.06), 70e12, 35e12, 32e9, ("NVIDIA A10G",)),
    Device("RTX-A6000", _gib(47.53), 154.8e12, 38.7e12, 32e9, ("NVIDIA RTX A6000",)),
    Device("RTX-3090", _gib(23.56), 71e12, 35.6e12, 16e9, ("NVIDIA GeForce RTX 3090",)),
    Device("RTX-4090", _gib(23.52), 165.2e12, 82.6e12, 32e9, ("NVIDIA GeForce RTX 4090",)),
)
# Taken from what `nvidia-smi` calls total where the table does not know what CUDA makes of it: the largest difference
# of the table is 0.86 GiB (A100 of 80 GB: 81920 MiB against 79.14 GiB).
_DRIVER_RESERVE = _gib(1)
# One server core: small byte-level models reached 3e10 to 5.5e10 FLOP/s of exact training FLOPs in fp32.
_CPU_SLOT = Device("cpu", 0, 4e10, 4e10, 5e9)
_INTER_NODE_BANDWIDTH = 25e9  # one 200 Gbit/s port a GPU
_HOST_MEMORY_PER_GPU = _gib(128)  # NVIDIA's DGX A100 of 320 GB has 1 TiB for 8 GPUs


@dataclass(frozen=True)
class Machine:
    """What one machine has, as `read_machine` found it.

    Attributes:
        device_name: Name of the table, the driver's name for a GPU outside it, or `cpu`.
        num_devices: GPUs, or slots of a CPU; under a launcher, what the launcher gives on this node.
        device_memory_bytes: Memory of one GPU as CUDA has it; None where it is the host's (a CPU, some GPUs).
        host_memory_bytes: Memory of the host.
        num_nodes: Nodes, as the launcher says; 1 without one.
        unknown_gpus: What a run would see that `nvidia-smi` tells no memory of, such as slices of a GPU (MIG); the
            rest then says what the machine is without them.
    """

    device_name: str
    num_devices: int
    device_memory_bytes: int | None
    host_memory_bytes: int
    num_nodes: int = 1
    unknown_gpus: str | None = None


@dataclass(frozen=True)
class Cluster:
    """The hardware that a sweep is planned for, with nothing left open.

    Attributes:
        device_name: Kind of device.
        kind: What trains on it.
        device_memory_bytes: Memory of one device.
        host_memory_bytes: Memory of a node's host.
        peak_flops: Dense FLOP/s of one device at the sweep's precision.
        gpus_per_node: Devices of a node.
        num_nodes: Nodes.
        intra_node_bandwidth: Bytes a second between two devices of a node, each way.
        inter_node_bandwidth: Bytes a second that one device has to other nodes, each way.
        price_per_gpu_hour: Money, in any currency; None where the spec names no price.
    """

    device_name: str
    kind: Literal["cuda", "cpu"]
    device_memory_bytes: int
    host_memory_bytes: int
    peak_flops: float
    gpus_per_node: int
    num_nodes: int
    intra_node_bandwidth: float
    inter_node_bandwidth: float
    price_per_gpu_hour: float | None

    @property
    def num_gpus(self) -> int:
        """Devices of the whole cluster."""
        return self.gpus_per_node * self.num_nodes


def launched_world(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """World size and ranks of one node, as a launcher (or SLURM's `srun`) set them; None without a launcher.

    Raises:
        LaunchError: The launcher's variables contradict each other, or are no numbers.
    """
    if environment.get("RANK") and environment.get("WORLD_SIZE"):
        world = _count_in(environment, "WORLD_SIZE")
        local = _count_in(environment, "LOCAL_WORLD_SIZE") or _count_in(environment, "LOCAL_SIZE") or world
    elif "SLURM_PROCID" in environment and _count_in(environment, "SLURM_STEP_NUM_TASKS") > 1:
        world = _count_in(environment, "SLURM_STEP_NUM_TASKS")
        local = world // max(1, _count_in(environment, "SLURM_STEP_NUM_NODES"))
    else:
        return None
    if local < 1 or world % local:
        raise LaunchError(
            f"the launcher started {world} ranks, {local} of them on this node: every node must have the same number"
        )
    return world, local


def _count_in(environment: Mapping[str, str], name: str) -> int:
    """A launcher's variable; 0 where it is not set."""
    text = environment.get(name) or "0"
    try:
        return int(text)
    except ValueError:
        raise LaunchError(f"{name}={text!r} in the environment: a launcher sets a whole number; unset it") from None


def read_machine(environment: Mapping[str, str] | None = None) -> Machine:
    """Look at this machine: GPUs through `nvidia-smi`, memory, cores, and what a launcher says. Never touches CUDA.

    Raises:
        LaunchError: The launcher's variables contradict each other.
    """
    environment = os.environ if environment is None else environment
    import psutil

    host_memory = psutil.virtual_memory().total
    launched = launched_world(environment)
    num_nodes = launched[0] // launched[1] if launched else 1
    listed = _listed_gpus()
    gpus, unknown = _visible_gpus(listed, visible_entries(environment))
    if gpus and not unknown:
        name, memory = _table_name(gpus[0].name), gpus[0].memory
        cuda_memory = _cuda_memory_bytes(name, memory)
        return Machine(name, launched[1] if launched else len(gpus), cuda_memory, host_memory, num_nodes)
    slots = launched[1] if launched else min(len(os.sched_getaffinity(0)), _MAX_AUTOMATIC_CPU_SLOTS)
    return Machine("cpu", slots, None, host_memory, num_nodes, unknown)


@dataclass(frozen=True)
class _ListedGpu:
    """One line of `nvidia-smi`."""

    index: str
    uuid: str
    name: str
    memory: str
    mig: str


def _listed_gpus() -> list[_ListedGpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index,uuid,name,memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if answer.returncode:
        return []
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    return [_ListedGpu(*(cell.strip() for cell in line.split(","))) for line in lines]


def visible_entries(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """The entries of CUDA_VISIBLE_DEVICES (numbers, UUIDs or their beginnings); None where it is not set."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else tuple(entry.strip() for entry in visible.split(","))


def _visible_gpus(listed: list[_ListedGpu], visible: tuple[str, ...] | None) -> tuple[list[_ListedGpu], str | None]:
    """GPUs that CUDA_VISIBLE_DEVICES (numbers or UUIDs) leaves visible, and what of it is no GPU of the list."""
    chosen = listed if visible is None else []
    for entry in visible or ():
        match = next((gpu for gpu in listed if entry == gpu.index or (entry and gpu.uuid.startswith(entry))), None)
        if match is None:
            if entry.startswith("MIG-") or (listed and not chosen and entry.lower() not in _NO_GPU):
                return chosen, f"CUDA_VISIBLE_DEVICES={','.join(visible or ())}"
            break  # CUDA ignores everything from the first entry that it does not know
        chosen.append(match)
    sliced = [gpu.index for gpu in chosen if gpu.mig == "Enabled"]
    return chosen, f"GPU {', '.join(sliced)} in MIG mode" if sliced else None


def _cuda_memory_bytes(name: str, driver_memory: str) -> int | None:
    """What CUDA has of the MiB that `nvidia-smi` calls total; None for its `[N/A]`: host and device share their memory.

    The table's figure; less where the driver shows less than that (error correction switched on, a virtual GPU), and
    for a GPU outside the table: then the driver's, without a reserve.
    """
    if not driver_memory[:1].isdigit():
        return None
    driver = int(float(driver_memory) * 2**20)
    known = next((device.memory_bytes for device in DEVICES if device.name == name), driver)
    return known if known < driver else max(0, driver - _DRIVER_RESERVE)


def _table_name(driver_name: str) -> str:
    for device in DEVICES:
        if driver_name in device.aliases:
            return device.name
    return driver_name


def find_device(name: str) -> Device:
    """The table's entry of that name (case does not matter), or the CPU slot for `cpu`.

    Raises:
        SpecError: The table has no such device; the message names the nearest and how to give the numbers by hand.
    """
    if name == "cpu":
        return _CPU_SLOT
    by_name = {device.name.lower(): device for device in DEVICES}
    by_name |= {alias.lower(): device for device in DEVICES for alias in device.aliases}
    if name.lower() in by_name:
        return by_name[name.lower()]
    near = difflib.get_close_matches(name.lower(), list(by_name), n=3, cutoff=0.4)
    nearest = f" (nearest: {', '.join(dict.fromkeys(by_name[match].name for match in near))})" if near else ""
    raise SpecError(
        f"hardware.device: {name!r} is not in the table{nearest}; known: {', '.join(d.name for d in DEVICES)}, cpu, "
        "auto. "
        "For another device write device: custom with device_memory, peak_flops, gpus_per_node and intra_node_bandwidth"
    )


def _refuse_unknown_gpus(machine: Machine) -> None:
    by_hand = "write device: custom with device_memory, peak_flops, gpus_per_node and intra_node_bandwidth"
    if machine.unknown_gpus is not None:
        raise SpecError(
            f"hardware.device: auto does not know the memory and the speed of {machine.unknown_gpus}: nvidia-smi tells "
            f"them of whole GPUs in its list only. {by_hand} of what a run may use (MIG: one entry of "
            "CUDA_VISIBLE_DEVICES a slice, and placement.num_gpus: [1], for slices do not reach each other), or "
            "device: cpu"
        )
    if machine.device_memory_bytes and machine.device_name not in {device.name for device in DEVICES}:
        raise SpecError(
            f"hardware.device: auto found {machine.device_name!r}, which is not in the table; {by_hand}; here "
            f"device_memory: {machine.device_memory_bytes / GIB:.2f}GiB and gpus_per_node: {machine.num_devices}"
        )


def _peak_flops(device: Device, precision: str) -> float:
    """TF32 does half of bf16 on every tensor core that knows it, by NVIDIA's data sheets since the A100."""
    half = device.bf16_flops
    return {"bf16": half, "bf16-pure": half, "tf32": half / 2, "fp32": device.fp32_flops}[precision]


def resolve_cluster(
    precision: str,
    machine: Machine | None = None,
    *,
    device: str = "auto",
    gpus_per_node: int | None = None,
    num_nodes: int = 1,
    device_memory: int | None = None,
    host_memory: int | None = None,
    peak_flops: float | None = None,
    intra_node_bandwidth: float | None = None,
    inter_node_bandwidth: float | None = None,
    price_per_gpu_hour: float | None = None,
) -> Cluster:
    """Fill in what the spec leaves open, from the table or from `machine`.

    Args:
        precision: `fp32`, `tf32`, `bf16` or `bf16-pure`; decides the peak FLOP/s.
        machine: What to take `auto` and missing numbers of devices from; without it, this machine is read if needed.
        device: The remaining arguments are the fields of the spec's `hardware` section.

    Raises:
        SpecError: An unknown device, a custom one without its numbers, or `auto` for more nodes than there are or for
            GPUs that cannot be told apart from here.
    """
    automatic = device == "auto"
    if machine is None and (automatic or (gpus_per_node is None and device == "cpu")):
        machine = read_machine()
    if automatic:
        assert machine is not None
        _refuse_unknown_gpus(machine)
        device = machine.device_name
        device_memory = device_memory or machine.device_memory_bytes
        host_memory = host_memory or machine.host_memory_bytes
        if num_nodes not in (1, machine.num_nodes):
            raise SpecError(
                f"hardware: num_nodes: {num_nodes} with device: auto, and this machine, or its launcher, has "
                f"{machine.num_nodes}; name the device and gpus_per_node to plan for other machines than this"
            )
        num_nodes = machine.num_nodes
    if device == "custom":
        given = {"device_memory": device_memory, "peak_flops": peak_flops, "gpus_per_node": gpus_per_node}
        given["intra_node_bandwidth"] = intra_node_bandwidth
        missing = [key for key, value in given.items() if value is None]
        if missing:
            raise SpecError(f"hardware: device: custom needs {', '.join(missing)} as well")
        entry = Device("custom", device_memory or 0, peak_flops or 0.0, peak_flops or 0.0, intra_node_bandwidth or 0.0)
    else:
        entry = find_device(device)
    if gpus_per_node is None:
        gpus_per_node = machine.num_devices if machine is not None else 8
    if host_memory is None:
        host_memory = machine.host_memory_bytes if machine is not None else _HOST_MEMORY_PER_GPU * gpus_per_node
    return Cluster(
        device_name=entry.name,
        kind="cpu" if entry.name == "cpu" else "cuda",
        device_memory_bytes=device_memory or entry.memory_bytes or host_memory // gpus_per_node,
        host_memory_bytes=host_memory,
        peak_flops=peak_flops or _peak_flops(entry, precision),
        gpus_per_node=gpus_per_node,
        num_nodes=num_nodes,
        intra_node_bandwidth=intra_node_bandwidth or entry.intra_node_bandwidth,
        inter_node_bandwidth=inter_node_bandwidth or _INTER_NODE_BANDWIDTH,
        price_per_gpu_hour=price_per_gpu_hour,
    )

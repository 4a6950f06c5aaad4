"""Devices: the table, what a machine or a launcher says of itself, and what a spec leaves open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flopsfit_ds.base.errors import LaunchError, SpecError
from flopsfit_ds.base.hardware import DEVICES, Machine, find_device, launched_world, read_machine, resolve_cluster
from flopsfit_ds.base.units import GIB

H100 = "NVIDIA H100 80GB HBM3, 81559"
GPUS = (
    ("0", "GPU-aaaa1111", H100),
    ("1", "GPU-bbbb2222", H100),
    ("2", "GPU-cccc3333", H100),
    ("3", "GPU-dddd4444", H100),
)

# `memory.total` of nvidia-smi, in MiB
DRIVER_MEMORY = {
    "A100-SXM-40GB": 40960, "A100-SXM-80GB": 81920, "A100-PCIE-40GB": 40960, "A100-PCIE-80GB": 81920, "H100-SXM": 81559,
    "H100-PCIE": 81559, "H100-NVL": 95830, "H200-SXM": 143771, "B200-SXM": 183359, "L4": 23034, "L40S": 46068,
    "A10": 23028, "A10G": 23028, "RTX-A6000": 49140, "RTX-3090": 24576, "RTX-4090": 24564,
}  # fmt: skip


def install_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, rows=GPUS, exit_code: int = 0) -> None:
    """An executable that answers as the driver's tool does, first on PATH."""
    answer = "\n".join(", ".join(row if len(row) == 4 else (*row, "[N/A]")) for row in rows)
    script = folder / "nvidia-smi"
    script.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "assert '--query-gpu=index,uuid,name,memory.total,mig.mode.current' in sys.argv, sys.argv\n"
        f"print({answer!r})\nsys.exit({exit_code})\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


class TestTable:
    @pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
    def test_a_device_is_found_by_its_name_and_by_the_drivers_in_any_case(self, device):
        for name in (device.name, device.name.lower(), *device.aliases):
            assert find_device(name) == device

    @pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
    def test_memory_is_what_cuda_can_allocate_less_than_the_driver_calls_total(self, device):
        kept_by_the_driver = DRIVER_MEMORY[device.name] / 1024 - device.memory_bytes / GIB
        assert 0.4 < kept_by_the_driver < 0.9

    def test_the_a10g_of_the_cloud_has_about_half_the_tensor_cores_speed_of_an_a10(self):
        assert find_device("NVIDIA A10G").bf16_flops == 70e12 < find_device("NVIDIA A10").bf16_flops

    def test_an_unknown_device_is_answered_with_the_nearest_and_with_what_custom_takes(self):
        with pytest.raises(SpecError) as caught:
            find_device("H100-SMX")
        assert "nearest: H100-SXM" in str(caught.value)
        assert "device: custom with device_memory, peak_flops, gpus_per_node" in str(caught.value)


class TestLaunchers:
    @pytest.mark.parametrize(
        ("environment", "world"),
        [
            ({}, None),
            ({"WORLD_SIZE": "8"}, None),
            ({"RANK": "3", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, (16, 8)),  # torchrun, accelerate
            ({"RANK": "0", "WORLD_SIZE": "16", "LOCAL_SIZE": "8"}, (16, 8)),  # deepspeed
            ({"RANK": "0", "WORLD_SIZE": "2"}, (2, 2)),
            ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2"}, (16, 8)),
            ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),  # a batch script, or srun of one task
        ],
    )
    def test_world_and_ranks_of_a_node(self, environment, world):
        assert launched_world(environment) == world

    def test_uneven_nodes_are_refused(self):
        with pytest.raises(LaunchError, match="10 ranks, 8 of them on this node"):
            launched_world({"RANK": "0", "WORLD_SIZE": "10", "LOCAL_WORLD_SIZE": "8"})

    def test_a_machine_under_a_launcher_is_what_the_launcher_gives(self):
        machine = read_machine({"RANK": "0", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"})
        assert (machine.num_devices, machine.num_nodes) == (3, 2)


class TestMachine:
    @pytest.mark.parametrize(
        ("visible", "count"),
        [
            (None, 4),
            ("0,2", 2),
            ("GPU-cccc3333", 1),
            ("GPU-cc,GPU-aa", 2),  # CUDA takes the beginning of a UUID
            ("", 0),
            ("-1", 0),
            ("0,-1,2", 1),  # CUDA ignores all from the first entry it does not know
            ("0,7,2", 1),
            ("NoDevFiles", 0),  # SLURM, for a job without a GPU
        ],
    )
    def test_only_visible_gpus_count(self, tmp_path, monkeypatch, visible, count):
        install_nvidia_smi(tmp_path, monkeypatch)
        machine = read_machine({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
        if count:
            assert (machine.device_name, machine.num_devices) == ("H100-SXM", count)
            assert machine.device_memory_bytes == find_device("H100-SXM").memory_bytes
        else:
            assert machine.device_name == "cpu"

    def test_a_driver_that_fails_means_no_gpus(self, tmp_path, monkeypatch):
        install_nvidia_smi(tmp_path, monkeypatch, exit_code=9)
        assert read_machine({}).device_name == "cpu"

    def test_a_gpu_that_shares_the_hosts_memory_says_none_of_its_own(self, tmp_path, monkeypatch):
        install_nvidia_smi(tmp_path, monkeypatch, rows=[("0", "GPU-aa", "NVIDIA GB10, [N/A]")])
        assert read_machine({}) == Machine("NVIDIA GB10", 1, None, read_machine({}).host_memory_bytes)

    @pytest.mark.parametrize(
        ("gpu", "memory"),
        [
            ("NVIDIA L40S, 46068", find_device("L40S").memory_bytes),
            ("NVIDIA RTX A6000, 46068", 45044 * 2**20),  # error correction takes a share of it
            ("NVIDIA Fantasy 9000, 32768", 31744 * 2**20),
        ],
    )
    def test_memory_of_a_gpu_is_less_than_its_driver_calls_total(self, tmp_path, monkeypatch, gpu, memory):
        install_nvidia_smi(tmp_path, monkeypatch, rows=[("0", "GPU-aa", gpu)])
        assert read_machine({}).device_memory_bytes == memory

    def test_a_gpu_outside_the_table_is_an_error_that_says_how_to_go_on(self, tmp_path, monkeypatch):
        install_nvidia_smi(tmp_path, monkeypatch, rows=[("0", "GPU-aa", "NVIDIA Fantasy 9000, 32000")])
        with pytest.raises(SpecError, match=r"'NVIDIA Fantasy 9000', which is not in the table.*custom.*: 30.25GiB"):
            resolve_cluster("bf16")

    @pytest.mark.parametrize("visible", ["MIG-9f0c", "0,MIG-9f0c", "GPU-eeee5555", "7"])
    def test_auto_never_takes_gpus_that_it_does_not_know_for_a_cpu(self, tmp_path, monkeypatch, visible):
        install_nvidia_smi(tmp_path, monkeypatch)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(SpecError, match=f"CUDA_VISIBLE_DEVICES={visible}: .*device: custom with device_memory"):
            resolve_cluster("bf16")
        assert resolve_cluster("fp32", device="cpu").gpus_per_node >= 1
        by_hand = {"device_memory": 10 * GIB, "peak_flops": 1.4e14, "gpus_per_node": 2, "intra_node_bandwidth": 1e9}
        assert resolve_cluster("bf16", device="custom", **by_hand).device_memory_bytes == 10 * GIB

    def test_auto_does_not_plan_a_whole_gpu_where_it_is_sliced(self, tmp_path, monkeypatch):
        install_nvidia_smi(tmp_path, monkeypatch, rows=[GPUS[0], (*GPUS[1], "Enabled")])
        assert read_machine({"CUDA_VISIBLE_DEVICES": "0"}).device_name == "H100-SXM"
        with pytest.raises(SpecError, match="the speed of GPU 1 in MIG mode"):
            resolve_cluster("bf16", read_machine({"CUDA_VISIBLE_DEVICES": "0,1"}))

    def test_without_gpus_the_cores_are_slots(self):
        machine = read_machine({})
        assert machine.device_name == "cpu"
        assert 1 <= machine.num_devices <= len(os.sched_getaffinity(0))
        assert machine.device_memory_bytes is None

    def test_looking_at_the_machine_loads_no_torch(self):
        code = (
            "import sys; from flopsfit_ds.base.hardware import read_machine as r; r(); sys.exit('torch' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestCluster:
    def test_auto_takes_everything_from_the_machine(self):
        cluster = resolve_cluster("bf16", Machine("A100-SXM-80GB", 4, 79 * GIB, 500 * GIB, num_nodes=2))
        assert (cluster.device_name, cluster.kind, cluster.num_gpus) == ("A100-SXM-80GB", "cuda", 8)
        assert (cluster.device_memory_bytes, cluster.host_memory_bytes) == (79 * GIB, 500 * GIB)
        assert cluster.peak_flops == 312e12

    def test_slots_of_a_cpu_share_the_hosts_memory(self):
        cluster = resolve_cluster("fp32", Machine("cpu", 4, None, 32 * GIB))
        assert (cluster.kind, cluster.device_memory_bytes) == ("cpu", 8 * GIB)

    def test_precision_decides_the_peak(self):
        peaks = [resolve_cluster(precision, device="H100-SXM").peak_flops for precision in ("bf16", "fp32")]
        assert peaks == [989e12, 67e12]

    def test_what_the_spec_gives_counts(self):
        cluster = resolve_cluster(
            "bf16", device="h100-sxm", gpus_per_node=4, num_nodes=3, device_memory=70 * GIB, host_memory=900 * GIB,
            peak_flops=8e14, intra_node_bandwidth=1e11, inter_node_bandwidth=1e10, price_per_gpu_hour=2.5,
        )  # fmt: skip
        assert (cluster.gpus_per_node, cluster.num_nodes, cluster.num_gpus) == (4, 3, 12)
        assert (cluster.device_memory_bytes, cluster.host_memory_bytes) == (70 * GIB, 900 * GIB)
        assert (cluster.peak_flops, cluster.price_per_gpu_hour) == (8e14, 2.5)
        assert (cluster.intra_node_bandwidth, cluster.inter_node_bandwidth) == (1e11, 1e10)

    def test_a_named_device_does_not_look_at_this_machine(self, tmp_path, monkeypatch):
        install_nvidia_smi(tmp_path, monkeypatch, rows=[("0", "GPU-aa", "NVIDIA L4, 23034")])
        cluster = resolve_cluster("bf16", device="H100-SXM")
        assert (cluster.gpus_per_node, cluster.device_memory_bytes) == (8, find_device("H100-SXM").memory_bytes)

    def test_a_custom_device_needs_its_numbers(self):
        with pytest.raises(SpecError, match="custom needs device_memory, gpus_per_node, intra_node_bandwidth as well"):
            resolve_cluster("bf16", device="custom", peak_flops=1e15)
        cluster = resolve_cluster(
            "bf16", device="custom", peak_flops=1e15, device_memory=GIB, gpus_per_node=2, intra_node_bandwidth=1e9
        )
        assert (cluster.device_name, cluster.kind, cluster.peak_flops) == ("custom", "cuda", 1e15)

    def test_auto_cannot_mean_nodes_that_are_not_there(self):
        with pytest.raises(SpecError, match="num_nodes: 4 with device: auto"):
            resolve_cluster("bf16", Machine("H100-SXM", 8, None, GIB), num_nodes=4)
        launched = Machine("H100-SXM", 8, None, GIB, num_nodes=4)
        assert resolve_cluster("bf16", launched, num_nodes=4).num_gpus == 32

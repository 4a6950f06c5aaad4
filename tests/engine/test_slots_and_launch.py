"""Where slots come from, what a worker inherits, and what a user meets who asks for too much."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.engine.fork.child import Launch, _worker_environment, scrub_environment
from flopsfit_ds.engine.nodes.launch import launched_rank
from flopsfit_ds.engine.slots import slots_of_this_node, visible_devices


@pytest.fixture
def eight_gpus(tmp_path, monkeypatch):
    """A machine whose `nvidia-smi` lists eight GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\nfor i in 0 1 2 3 4 5 6 7; do echo "$i, GPU-aaaa$i-bbbb"; done\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def cpu_cluster(slots):
    return resolve_cluster("fp32", device="cpu", gpus_per_node=slots, host_memory=2**34)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "2", "3", "4", "5", "6", "7"]),
        ("2,5", ["2", "5"]),
        ("GPU-aaaa3-bbbb,GPU-aaaa1", ["3", "1"]),
        ("1,99,2", ["1"]),
        ("", []),
        ("MIG-GPU-1/2/0", ["MIG-GPU-1/2/0"]),
        ("MIG-3c2b,MIG-77af", ["MIG-3c2b", "MIG-77af"]),
    ],
)
def test_cuda_visible_devices_is_honoured_as_cuda_does(eight_gpus, visible, expected):
    assert visible_devices({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == expected


def test_gpu_slots_keep_the_entries_that_workers_will_see(eight_gpus):
    cluster = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8)
    node = slots_of_this_node(cluster, 2, {"CUDA_VISIBLE_DEVICES": "6,GPU-aaaa1,3"})
    assert node.devices == ("6", "1")
    with pytest.raises(LaunchError, match="--slots asks for 9 slots on this node and it shows 8 GPUs"):
        slots_of_this_node(cluster, 9, {})
    launched = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}
    with pytest.raises(LaunchError, match="let every rank see all GPUs of its node"):
        slots_of_this_node(cluster, None, {**launched, "CUDA_VISIBLE_DEVICES": "0"})
    assert len(slots_of_this_node(cluster, None, launched).devices) == 4
    with pytest.raises(LaunchError, match="leave --slots out"):
        slots_of_this_node(cluster, 2, launched)


@pytest.mark.parametrize("visible", ["GPU-aaaa5,GPU-aaaa2", "5,GPU-aaaa2-bbbb"])
def test_the_installed_deepspeed_finds_the_gpus_of_a_worker_with_pynvml(eight_gpus, monkeypatch, visible):
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    order = SimpleNamespace(
        rank=0, local_rank=0, world_size=2, local_world_size=2, store_host="x", store_port=1, num_threads=1
    )
    devices = ",".join(visible_devices({"CUDA_VISIBLE_DEVICES": visible}))
    environment = _worker_environment(Launch("module:function", order, b"", devices))  # pyright: ignore[reportArgumentType]
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment["CUDA_VISIBLE_DEVICES"])
    remap = CUDA_Accelerator._get_nvml_gpu_id
    assert [remap(None, number) for number in (0, 1)] == [5, 2]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("installed", [True, False])
def test_slices_of_a_gpu_are_slots_and_pynvml_beside_them_is_warned_of(
    eight_gpus, tmp_path, monkeypatch, caplog, installed
):
    if installed:
        (tmp_path / "pynvml.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
    elif importlib.util.find_spec("pynvml"):
        pytest.skip("pynvml is installed here")
    by_hand = {"device_memory": 2**33, "peak_flops": 1e14, "gpus_per_node": 2, "intra_node_bandwidth": 1e9}
    node = slots_of_this_node(
        resolve_cluster("bf16", device="custom", **by_hand), None, {"CUDA_VISIBLE_DEVICES": "MIG-3c2b,MIG-77af"}
    )
    assert [slot.device for slot in node.slots("")] == ["MIG-3c2b", "MIG-77af"]
    assert ("DeepSpeed 0.19 then fails at the start of ZeRO-1 and 2" in caplog.text) is installed


def test_slots_of_a_cpu():
    assert slots_of_this_node(cpu_cluster(3), None, {}).devices == (None,) * 3
    assert slots_of_this_node(cpu_cluster(3), 5, {}).devices == (None,) * 5


def test_srun_is_a_launcher_too():
    slurm = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}
    place = launched_rank(slurm)
    assert (place.rank, place.node, place.local_rank, place.num_nodes) == (5, 1, 1, 2)
    assert launched_rank({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_hosts_with_unequal_slots_are_refused():
    with pytest.raises(LaunchError, match="every node must have the same number"):
        launched_rank({"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"})


def test_a_worker_inherits_nothing_of_a_launcher():
    environment = {"ACCELERATE_MIXED_PRECISION": "fp16", "TORCHELASTIC_RUN_ID": "x", "RANK": "3", "GROUP_RANK": "1"}
    environment |= {"MASTER_PORT": "29500", "ROLE_RANK": "0", "HF_HOME": "/data", "NCCL_DEBUG": "INFO"}
    scrub_environment(environment)
    assert environment == {"HF_HOME": "/data", "NCCL_DEBUG": "INFO"}


def test_a_slot_count_that_no_point_fits(make_plan, run_toys):
    plan = make_plan(2, num_gpus="[2]")
    with pytest.raises(LaunchError, match="needs 2 slots or more and there are 1"):
        run_toys(plan, slots=1)


def test_points_of_one_two_and_four_slots_side_by_side(make_plan, run_toys):
    plan = make_plan(8, num_gpus="[1, 2, 4]", slots=4)
    records = run_toys(plan, common={"step_seconds": 0.01})
    assert all(record.status == "completed" for record in records)
    from flopsfit_ds.cli.sweeping.timeline import draw_timeline
    from flopsfit_ds.engine.disk.watch import attempts_on_slots
    from flopsfit_ds.records import SweepFolder

    events = SweepFolder(plan.folder).events.read()
    finish = [event for event in events if event["event"] == "finish"]
    assert finish[0]["num_slots"] == 4
    picture = draw_timeline(attempts_on_slots(SweepFolder(plan.folder)), 60)
    assert len([line for line in picture.splitlines() if line.lstrip()[:3] in ("0 |", "1 |", "2 |", "3 |")]) == 4
    overlapping = 0
    ends = [event for event in events if event["event"] == "end"]
    for one in ends:
        for other in ends:
            if one is not other and one["time"] - one["seconds"] < other["time"] - other["seconds"] < one["time"]:
                overlapping += 1
                assert not set(one["slots"]) & set(other["slots"])
    assert overlapping


def test_the_server_that_forks_never_touches_cuda_and_a_worker_sees_only_its_devices(make_plan, run_toys):
    plan = make_plan(1)
    records = run_toys(plan, {0: {"fault": "look", "fault_attempts": 1}})
    log = (plan.folder / "runs" / records[0].run_id / "attempt-1" / "log.0.txt").read_text()
    assert "cuda initialised: False" in log
    assert "session leader: True" in log
    assert "launcher variables: []" in log


def test_failed_points_run_again_after_retry(make_plan, run_toys):
    from flopsfit_ds.engine import give_another_chance, read_plan
    from flopsfit_ds.records import SweepFolder

    plan = make_plan(2)
    records = run_toys(plan, {0: {"fault": "raise", "fault_attempts": 2, "fault_step": 1}})
    assert [record.status for record in records] == ["failed", "completed"], records[0].attempts
    assert run_toys(plan) == records, "a failed point is not tried again by itself"
    assert read_plan(plan.folder) == replace(plan, folder=plan.folder)
    assert [record.run_id for record in give_another_chance(SweepFolder(plan.folder))] == [records[0].run_id]
    again = run_toys(plan)
    assert [record.status for record in again] == ["completed", "completed"]
    assert len(again[0].attempts) == 3
    assert again[1] == records[1]


def run_script(folder, body):
    script = folder / "script.py"
    script.write_text(textwrap.dedent(body))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )


SCRIPT = """
    import functools, sys
    from dataclasses import dataclass
    from helpers.engine.toy import PROGRAM, SPEC, ToyTask
    from flopsfit_ds.engine import run_sweep
    from flopsfit_ds.base.errors import FlopsfitError
    from flopsfit_ds.plan.sweep_plan import build_plan
    from flopsfit_ds.spec import parse_spec

    @dataclass(frozen=True)
    class MyTask(ToyTask):
        pass

    def main():
        text = SPEC.format(root=sys.argv[1], points="{num_params: 11k, num_tokens: 40k}", slots=2, num_gpus="[1]")
        try:
            print(run_sweep(build_plan(parse_spec(text)), tasks=TASK, program=PROGRAM)[0].status)
        except FlopsfitError as error:
            print("error:", error)

"""


def test_classes_of_the_users_own_script(tmp_path):
    answer = run_script(
        tmp_path, SCRIPT.replace("TASK", "MyTask") + '\n    if __name__ == "__main__":\n        main()\n'
    )
    assert answer.stdout == "completed\n", answer.stderr


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    answer = run_script(tmp_path, SCRIPT.replace("TASK", "MyTask") + "\n    main()\n")
    assert 'put the call under if __name__ == "__main__":' in answer.stdout, answer.stdout + answer.stderr
    assert answer.stdout.count("error:") == 1


def test_a_task_that_cannot_be_sent_is_told_so(tmp_path):
    body = (
        SCRIPT.replace("TASK", "lambda run: (run, __import__('threading').Lock())")
        + '\n    if __name__ == "__main__":\n        main()\n'
    )
    answer = run_script(tmp_path, body)
    words = "error: a run's task cannot be sent to its workers: it[1] is a _thread.lock"
    assert words in answer.stdout, answer.stdout + answer.stderr

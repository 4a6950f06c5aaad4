"""Several nodes: two launchers on two loopback addresses, each a node; and one launcher with several ranks."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from flopsfit_ds.engine.nodes.control.mailbox import SILENCE_SECONDS
from helpers.engine.drivers import finish, processes_of, start, sweep_folder, wait_until, wait_until_held
from helpers.engine.launched_nodes import exit_codes, logs, start_nodes
from helpers.engine.toy import CHECKPOINT_STEPS, steps_trained_twice, undisturbed_loss
from helpers.ports import free_port


def test_a_point_whose_ranks_are_on_different_nodes(tmp_path):
    processes = start_nodes(tmp_path, 2, 1, 2, "[2]", 1, 0.02, "hardware.num_nodes=2")
    assert exit_codes(processes) == [0, 0], logs(tmp_path)
    records = list(sweep_folder(tmp_path).records())
    assert [record.loss for record in records] == [undisturbed_loss()] * 2
    host = socket.gethostname()
    assert records[0].attempts[0].slots == (f"{host}/0:0", f"{host}/1:0")


def test_points_stay_inside_a_node_where_they_fit(tmp_path):
    processes = start_nodes(tmp_path, 2, 2, 4, "[2]", 2, 0.0, "hardware.num_nodes=2")
    assert exit_codes(processes) == [0] * 4, logs(tmp_path)
    for record in sweep_folder(tmp_path).records():
        (attempt,) = record.attempts
        assert len({slot.rpartition(":")[0] for slot in attempt.slots}) == 1


@pytest.mark.slow
def test_a_node_that_cannot_take_part_is_named(tmp_path):
    port = free_port()
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    common["MASTER_PORT"] = str(port)
    arguments = (1, "[2]", 1, 0.1, "hardware.num_nodes=2")
    (tmp_path / "elsewhere").mkdir()
    first = start(tmp_path, *arguments, **common, RANK="0")
    second = start(tmp_path / "elsewhere", *arguments, **common, RANK="1")
    assert first.wait(120) == 2, logs(tmp_path)
    assert "share output_root between nodes" in (tmp_path / "log.txt").read_text()
    second.wait(120)


def test_the_other_node_leaves_when_the_driver_is_killed(tmp_path, faults):
    faults.inject("SIGKILL of the driver")
    processes = start_nodes(tmp_path, 2, 1, 1, "[2]", 1, 0.0, "hardware.num_nodes=2", held=True)
    wait_until_held(tmp_path, 2)
    processes[0].send_signal(signal.SIGKILL)
    assert exit_codes(processes, SILENCE_SECONDS) == [-9, 1], "at once, not after it has not heard the driver for long"
    wait_until(lambda: not processes_of(tmp_path), tmp_path)
    finish(tmp_path, 1, "[2]", 2, 0.01)
    faults.cost("SIGKILL of the driver", steps_trained_twice(sweep_folder(tmp_path).path), allowed=CHECKPOINT_STEPS)


def test_a_signal_to_a_waiting_rank_stops_the_sweep_with_checkpoints(tmp_path, faults):
    faults.inject("SIGTERM, SIGUSR1, SIGUSR2 or SIGINT")
    processes = start_nodes(tmp_path, 1, 2, 2, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path, 2)
    processes[1].send_signal(signal.SIGTERM)
    assert exit_codes(processes) == [75, 75], logs(tmp_path)
    records = finish(tmp_path, 2, "[1]", 2, 0.01)
    assert {record.attempts[0].outcome for record in records} == {"preempted"}
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("SIGTERM, SIGUSR1, SIGUSR2 or SIGINT", cost, allowed=0)


def test_a_launch_whose_port_is_taken(tmp_path, faults):
    """Of one node: nobody needs the launcher's port."""
    faults.inject("port taken")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        processes = start_nodes(tmp_path, 1, 2, 2, "[2]", 2, 0.01, port=taken.getsockname()[1])
        assert exit_codes(processes) == [0, 0], logs(tmp_path)
    assert [record.loss for record in sweep_folder(tmp_path).records()] == [undisturbed_loss()] * 2
    faults.cost("port taken", steps_trained_twice(sweep_folder(tmp_path).path), allowed=0)


def test_waiting_ranks_leave_when_the_working_one_dies(tmp_path):
    processes = start_nodes(tmp_path, 1, 2, 1, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path)
    processes[0].send_signal(signal.SIGKILL)
    assert exit_codes(processes) == [-9, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(("deepspeed", "--num_gpus", "4"), marks=pytest.mark.long),
        pytest.param(("accelerate", "launch", "--use_deepspeed", "--num_processes", "4"), marks=pytest.mark.long),
        ("torchrun", "--nproc-per-node", "4"),
    ],
    ids=lambda launcher: launcher[0],
)
def test_four_slots_of_a_real_launcher(tmp_path, launcher):
    bin_folder = Path(sys.executable).parent
    process = start(
        tmp_path, 6, "[1, 2, 4]", 4, 0.05, launcher=(str(bin_folder / launcher[0]), *launcher[1:]),
        PATH=f"{bin_folder}:{os.environ['PATH']}",
    )  # fmt: skip
    assert process.wait(240) == 0, logs(tmp_path)
    assert [record.loss for record in sweep_folder(tmp_path).records()] == [undisturbed_loss()] * 6

"""Several nodes, of which one is busy, cannot take part, or waits: nobody is given up early, and everybody is told."""

from __future__ import annotations

import signal
import time
from datetime import timedelta

import pytest

from flopsfit_ds.base.seal import Seal
from flopsfit_ds.engine.nodes.control.mailbox import Mailbox, beating
from helpers.engine.drivers import sweep_folder, wait_until
from helpers.engine.launched_nodes import exit_codes, logs, start_node
from helpers.engine.toy import undisturbed_loss
from helpers.ports import free_port


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "port").write_text(str(free_port()))
    return tmp_path


@pytest.mark.slow
def test_nodes_that_prepare_data_for_longer_than_the_silence_allowed(folder):
    processes = [start_node(folder, node, task_seconds=12.0, silence_seconds=8.0) for node in range(2)]
    assert exit_codes(processes) == [0, 0], logs(folder)
    assert [record.loss for record in sweep_folder(folder).records()] == [undisturbed_loss()]


@pytest.mark.slow
def test_a_node_waits_for_a_driver_that_is_not_there_yet_as_long_as_is_promised(folder):
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    began = time.monotonic()
    node = start_node(folder, 1, agent_store=store.port, join_seconds=15.0, silence_seconds=1.0)
    store.set_timeout(timedelta(seconds=120))
    store.wait(["flopsfit-ds/1/hello/1/session"])
    assert node.wait(120) == 1, logs(folder)
    assert time.monotonic() - began >= 15


def test_a_node_without_its_gpus_is_named_on_both_and_ends_the_sweep(folder):
    whole = 'case "$*" in *name*) echo "0, GPU-a, NVIDIA H100 80GB HBM3, 81559";; *) echo "0, GPU-a";; esac'
    broken = 'echo "Unable to determine the device handle for GPU0" >&2; exit 15'
    processes = [
        start_node(folder, node, nvidia_smi=what, device="H100-SXM") for node, what in enumerate((whole, broken))
    ]
    assert exit_codes(processes) == [2, 2], logs(folder)
    assert "node 1:" in (folder / "log.0.txt").read_text()
    assert "nvidia-smi" in (folder / "log.1.txt").read_text()


def test_a_driver_that_fails_before_all_have_joined_takes_the_others_with_it(folder):
    """Another driver holds the folder's lease; the store is the launcher's and stays."""
    from torch.distributed import TCPStore

    from flopsfit_ds.engine.disk.lease import Lease

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    lease = Lease.acquire(sweep_folder(folder).path / "leases")
    try:
        processes = [start_node(folder, node, agent_store=store.port) for node in range(2)]
        assert exit_codes(processes) == [2, 2], logs(folder)
    finally:
        lease.release()


def test_a_driver_that_waits_for_a_node_stops_on_a_signal_and_asks_to_be_started_again(folder):
    driver = start_node(folder, 0)
    wait_until(lambda: list(sweep_folder(folder).path.glob("runs/*/plan.json")), folder)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(120) == 75, logs(folder)
    assert "before node 1 had joined" in (folder / "log.0.txt").read_text()


def test_a_busy_main_thread_is_still_heard():
    from torch.distributed import HashStore

    store = HashStore()
    sender, receiver = Mailbox(store, "orders/1", Seal(b"key")), Mailbox(store, "orders/1", Seal(b"key"))
    assert not receiver.was_heard

    def numbers_heard(until):
        """Count with all of this thread's time until that many beats were heard, or a minute is over."""
        deadline, heard, silent = time.monotonic() + 60, 0, 0.0
        while heard < until and time.monotonic() < deadline:
            now = receiver.silent_seconds()
            heard, silent = heard + (now < silent), now
        return heard

    with beating(lambda: [sender]):
        assert numbers_heard(3) == 3
        assert receiver.was_heard
    deadline = time.monotonic() + 60
    while receiver.silent_seconds() < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert receiver.silent_seconds() >= 3, "without beats it is silent"


@pytest.mark.parametrize(
    ("place", "told"), [({"RANK": "8", "LOCAL_RANK": "0"}, 1), ({"RANK": "9", "LOCAL_RANK": "1"}, 0)]
)
def test_one_rank_of_each_node_says_what_is_wrong(monkeypatch, capsys, place, told):
    from flopsfit_ds.cli.main import run

    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert run(["sweep", "missing.yaml"]) == 2
    assert capsys.readouterr().err.count("error: missing.yaml") == told

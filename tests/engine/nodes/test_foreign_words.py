"""Whoever reaches a port, a socket or a folder of a sweep and does not belong to it gets nothing, and ends nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta

import psutil
import pytest
from torch.distributed import PrefixStore, TCPStore

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.base.seal import Seal, sweep_seal
from flopsfit_ds.base.storage import JsonLines
from flopsfit_ds.engine.nodes.control.mailbox import Mailbox
from flopsfit_ds.engine.nodes.launch import LaunchedRank, Waiters
from flopsfit_ds.engine.nodes.stores import host_store
from flopsfit_ds.engine.signals import Signals
from helpers.engine.drivers import let_go, start, sweep_folder, wait_until_held
from helpers.engine.launched_nodes import exit_codes, logs, start_nodes
from helpers.engine.toy import undisturbed_loss
from helpers.ports import free_port

NOBODY = 65534


@pytest.fixture
def store():
    return host_store(timedelta(seconds=60), only_here=True)


def listening(pid):
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    sockets = [each for process in processes for each in process.net_connections("tcp")]
    return [each.laddr for each in sockets if each.status == psutil.CONN_LISTEN]


def test_a_message_that_was_not_sealed_is_dropped_and_said_once(store, caplog):
    sender, receiver = (Mailbox(store, "orders/1", Seal(b"key")) for _ in range(2))
    forged = Seal(b"another key").wrap("orders/1/0", {"do": "leave", "exit_code": 0})
    with caplog.at_level(logging.WARNING):
        for foreign in (b"", b"\xff\x00", b"{}", forged, Seal(b"key").wrap("orders/1/1", {"do": "leave"})):
            store.set("orders/1/0", foreign)
            assert receiver.receive() is None
    assert len(caplog.records) == 1
    sender.send({"do": "start"})
    assert receiver.receive() == {"do": "start"}


def test_a_message_that_was_written_over_comes_again(store):
    sender, receiver = (Mailbox(store, "orders/1", Seal(b"key")) for _ in range(2))
    for number in range(3):
        sender.send({"number": number})
    store.set("orders/1/0", b"foreign")
    store.delete_key("orders/1/1")
    assert receiver.receive() is None
    sender.beat()
    assert [receiver.receive() for _ in range(4)] == [{"number": 0}, {"number": 1}, {"number": 2}, None]
    sender.beat()
    assert not store.check(["orders/1/0"]), "what was read is not left again"


def test_a_foreign_sign_of_life_is_none(store):
    sender, receiver = (Mailbox(store, "orders/1", Seal(b"key")) for _ in range(2))
    store.set("orders/1/beat", b"7")
    receiver.silent_seconds()
    assert not receiver.was_heard
    sender.beat()
    time.sleep(1.1)
    receiver.silent_seconds()
    assert receiver.was_heard


@pytest.mark.slow
def test_several_nodes_end_well_while_a_stranger_writes_into_their_store(tmp_path, faults):
    faults.inject("foreign messages to the control store")
    port = free_port()
    processes = start_nodes(tmp_path, 2, 1, 2, "[2]", 1, 0.1, "hardware.num_nodes=2", port=port)
    deadline = time.monotonic() + 120
    while (stranger := _reach(port)) is None:
        assert time.monotonic() < deadline, logs(tmp_path)
        time.sleep(0.05)
    stranger.wait(["hello/1/session"], timedelta(seconds=60))
    session = json.loads(stranger.get("hello/1/session").partition(b" ")[2])["session"]
    keys = [f"{box}/1/{session}/{what}" for box in ("orders", "reports") for what in (*range(12), "beat", "read")]
    keys += ["hello/1/session", "farewell/exit_code"]
    with contextlib.suppress(RuntimeError, OSError):  # the store goes with the sweep
        while any(process.poll() is None for process in processes):
            for key in keys:
                stranger.set(key, b'{"do": "leave", "exit_code": 0}')
            with socket.create_connection(("127.0.0.1", port), timeout=1) as raw:
                raw.sendall(bytes(range(256)))
            time.sleep(0.7)
    assert exit_codes(processes) == [0, 0], logs(tmp_path)
    assert [record.loss for record in sweep_folder(tmp_path).records()] == [undisturbed_loss()] * 2
    assert logs(tmp_path).count("not written with this sweep's key") <= 6
    faults.cost_unknown("foreign messages to the control store", "no attempt was ended")


def _reach(port):
    try:
        client = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=2), wait_for_workers=False)
    except RuntimeError:
        return None
    return PrefixStore("flopsfit-ds/1", client)


def test_one_node_listens_on_the_loopback_alone_and_foreign_heartbeats_end_nothing(tmp_path):
    driver = start(tmp_path, 1, "[2]", 2, 0.0, held=True)
    wait_until_held(tmp_path, 2)
    places = listening(driver.pid)
    assert places
    assert {place.ip for place in places} <= {"127.0.0.1", "::1"}
    for place in places:
        with contextlib.suppress(RuntimeError):
            stranger = TCPStore("127.0.0.1", place.port, is_master=False, timeout=timedelta(seconds=2))
            for key in ("heartbeat/0", "heartbeat/1", "start_step", "saved_step"):
                stranger.set(key, b"\xff\x1b[2Jnonsense")
    let_go(tmp_path)
    assert driver.wait(120) == 0, (tmp_path / "log.txt").read_text()
    (record,) = sweep_folder(tmp_path).records()
    assert record.loss == undisturbed_loss()
    assert len(record.attempts) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be another user")
def test_the_socket_of_waiting_ranks_hears_this_user_alone(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    code = (
        "import socket, sys, os; os.setuid(int(sys.argv[2])); peer = socket.socket(socket.AF_UNIX);"
        "peer.connect('\\0' + sys.argv[1]); peer.sendall(bytes([int(sys.argv[3])])); peer.recv(1)"
    )
    with Signals() as signals:
        waiters = Waiters(LaunchedRank(0, 2, 0, 2), signals)
        name = waiters._listener.getsockname()[1:].decode()

        def knock(user, number):
            subprocess.run([sys.executable, "-c", code, name, str(user), str(number)], timeout=60, check=False)

        knock(NOBODY, signal.SIGTERM)
        assert signals.received is None
        peer = subprocess.Popen([sys.executable, "-c", code, name, "0", str(int(signal.SIGTERM))])
        deadline = time.monotonic() + 30
        while signals.received is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert signals.received == signal.SIGTERM
        waiters.finish(0)
        peer.kill()
        peer.wait()


def test_a_byte_that_is_no_signal_costs_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with Signals() as signals:
        waiters = Waiters(LaunchedRank(0, 2, 0, 2), signals)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(waiters._listener.getsockname())
            peer.sendall(bytes([0, 255, 9, signal.SIGUSR1]))
            deadline = time.monotonic() + 30
            while signals.received is None and time.monotonic() < deadline:
                time.sleep(0.02)
        assert signals.received == signal.SIGUSR1
        waiters.finish(0)


def test_a_key_is_made_once_and_is_its_users_alone(tmp_path):
    seal = sweep_seal(tmp_path)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert sweep_seal(tmp_path) == seal
    assert seal.key.hex() not in repr(seal)
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(SweepFolderError, match="chmod 600"):
        sweep_seal(tmp_path)
    (tmp_path / "key").chmod(0o600)
    if os.geteuid() == 0:
        os.chown(tmp_path / "key", NOBODY, NOBODY)
        with pytest.raises(SweepFolderError, match=f"belongs to user {NOBODY}"):
            sweep_seal(tmp_path)


def test_lines_are_not_written_through_a_symbolic_link(tmp_path):
    target = tmp_path / "elsewhere.txt"
    target.write_text("as it was\n")
    (tmp_path / "events.jsonl").symlink_to(target)
    with pytest.raises(SweepFolderError, match="symbolic link"):
        JsonLines(tmp_path / "events.jsonl").append({"event": "start"})
    assert target.read_text() == "as it was\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to leave the network")
def test_a_machine_without_any_interface_says_so_at_once(tmp_path):
    driver = start(tmp_path, 1, "[1]", 1, 0.01, launcher=("unshare", "--net", sys.executable))
    code = driver.wait(120)
    text = (tmp_path / "log.txt").read_text()
    if "unshare" in text:
        pytest.skip(f"no network namespaces here: {text}")
    assert code == 2, text
    assert "ip link set lo up" in text

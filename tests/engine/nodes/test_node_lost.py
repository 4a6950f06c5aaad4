"""A node that dies while others live: the sweep goes on without it, and takes it in when it is back."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from flopsfit_ds.base.seal import Seal
from flopsfit_ds.engine.nodes.control import roster as roster_module
from flopsfit_ds.engine.nodes.control.mailbox import Farewell, Hello, Mailbox
from flopsfit_ds.engine.nodes.control.roster import Roster
from flopsfit_ds.engine.signals import Signals
from helpers.engine.drivers import let_go, sweep_folder, wait_until, wait_until_held
from helpers.engine.launched_nodes import exit_codes, logs, start_node
from helpers.engine.toy import CHECKPOINT_STEPS, steps_trained_twice, undisturbed_loss
from helpers.ports import free_port

OFFER = {"node": 1, "hostname": "far", "devices": [None, None], "threads_per_slot": 1}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "port").write_text(str(free_port()))
    return tmp_path


def events(folder, kind):
    return [event for event in sweep_folder(folder).events.read() if event["event"] == kind]


@pytest.mark.slow
def test_the_sweep_goes_on_without_a_node_that_died(folder, faults):
    faults.inject("a node lost, and back")
    options = {"points": 3, "num_gpus": "[1]", "held": True, "silence_seconds": 10.0}
    driver, other = (start_node(folder, node, **options) for node in range(2))
    wait_until_held(folder, 2)
    other.send_signal(signal.SIGKILL)
    wait_until(lambda: events(folder, "node_lost"), folder)
    let_go(folder)
    assert exit_codes([driver, other]) == [0, -9], logs(folder)
    records = list(sweep_folder(folder).records())
    assert [record.loss for record in records] == [undisturbed_loss()] * 3
    (moved,) = [record for record in records if len(record.attempts) > 1]
    first, second = moved.attempts[0], moved.attempts[-1]
    assert (first.outcome, second.outcome) == ("interrupted", "completed")
    assert "was lost" in first.reason
    assert second.start_step == CHECKPOINT_STEPS
    assert first.slots != second.slots
    cost = steps_trained_twice(sweep_folder(folder).path)
    faults.cost("a node lost, and back", cost, allowed=CHECKPOINT_STEPS)


@pytest.mark.slow
def test_a_node_that_is_started_again_is_taken_in_and_finishes_a_run_that_needs_it(folder, faults):
    faults.inject("a node lost, and back")
    driver, other = (start_node(folder, node, held=True) for node in range(2))
    wait_until_held(folder, 2)
    other.send_signal(signal.SIGKILL)
    other.wait()
    again = start_node(folder, 1, held=True)
    wait_until(lambda: len(events(folder, "start")) == 2, folder)
    let_go(folder)
    assert exit_codes([driver, again]) == [0, 0], logs(folder)
    (record,) = sweep_folder(folder).records()
    assert record.loss == undisturbed_loss()
    assert [attempt.outcome for attempt in record.attempts] == ["interrupted", "completed"]
    assert record.attempts[1].start_step == CHECKPOINT_STEPS
    assert [event["node"] for event in (*events(folder, "node_lost"), *events(folder, "node_joined"))] == [1, 1]
    cost = steps_trained_twice(sweep_folder(folder).path)
    faults.cost("a node lost, and back", cost, allowed=CHECKPOINT_STEPS)


@dataclass
class Ends:
    """A node's own ends of what it shares with the driver."""

    store: HashStore
    session: str

    def __post_init__(self):
        self.orders = Mailbox(self.store, f"orders/1/{self.session}", Seal(b"key"))
        self.reports = Mailbox(self.store, f"reports/1/{self.session}", Seal(b"key"))
        Hello(self.store, Seal(b"key"), 1, self.session).beat()
        self.reports.beat()


def test_a_node_that_comes_again_is_another_and_its_former_stay_is_sent_away():
    store = HashStore()
    roster = Roster(2, store, Seal(b"key"), Signals())
    assert roster.look() == roster_module.Changes((), (), ())
    first = Ends(store, "first")
    first.reports.send({"slots": OFFER})
    (came,) = roster.look().came
    assert came.slots is not None
    assert came.slots.slots("far:")[1].name == "far:1"
    assert roster.look() == roster_module.Changes((), (), ())
    second = Ends(store, "second")
    changes = roster.look()
    assert (changes.lost, changes.came) == ((came,), ())
    assert first.orders.receive() == {"do": "join_again"}
    second.reports.send({"slots": OFFER})
    (back,) = roster.look().came
    assert (back.number, back.session) == (1, "second")
    back.start("run", [], [])
    assert second.orders.receive() == {"do": "start", "run_id": "run", "orders": [], "slots": []}
    assert first.orders.receive() is None


def test_a_silent_node_is_lost_once_and_one_that_cannot_take_part_is_refused(monkeypatch):
    store = HashStore()
    roster = Roster(2, store, Seal(b"key"), Signals())
    node = Ends(store, "first")
    node.reports.send({"slots": OFFER})
    roster.look()
    monkeypatch.setattr(roster_module, "SILENCE_SECONDS", -1.0)
    assert [lost.number for lost in roster.look().lost] == [1]
    assert roster.look() == roster_module.Changes((), (), ()), "it has not come again"
    monkeypatch.undo()
    Ends(store, "second").reports.send({"error": "no GPU"})
    assert roster.look().refused == ("node 1: no GPU",)
    assert not roster.nodes


def test_nodes_that_the_driver_never_met_hear_that_the_sweep_is_over():
    store = HashStore()
    roster = Roster(3, store, Seal(b"key"), Signals())
    assert Farewell(store, Seal(b"key")).heard() is None
    roster.dismiss(3)
    assert Farewell(store, Seal(b"key")).heard() == 3

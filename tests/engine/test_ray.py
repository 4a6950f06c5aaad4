"""Sweeps on a real Ray cluster of several nodes on this machine: nodes come and go, and the losses stay the same."""

from __future__ import annotations

import os
import signal
import time

import pytest

from flopsfit_ds.base.storage import JsonLines
from flopsfit_ds.cli.sweeping.dry_run import show_dry_run
from flopsfit_ds.engine.ray.resources import plan_groups
from helpers.engine.drivers import processes_of, start, sweep_folder, wait_for_steps
from helpers.engine.toy import CHECKPOINT_STEPS, steps_trained_twice, undisturbed_loss

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'flopsfit-ds[ray]'")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
ROOM = 64 * 2**30
"""Of memory that a node says it has: Ray takes its word."""


@pytest.fixture(scope="module")
def cluster():
    """A head that runs nothing itself; tests add nodes and leave none."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_memory_monitor_refresh_ms", "0")
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "memory": 2**30})
        yield made
        made.shutdown()


@pytest.fixture
def add_node(cluster):
    """Adds a node with so many cores, which goes at the end."""
    added = []

    def add(num_cpus=2):
        added.append(cluster.add_node(num_cpus=num_cpus, memory=ROOM))
        return added[-1]

    yield add
    for node in added:
        if node in cluster.list_all_nodes():
            cluster.remove_node(node)


def sweep_on(cluster, folder, *arguments):
    return start(folder, *arguments, "execution.hang_timeout=120", TOY_EXECUTOR="ray", RAY_ADDRESS=cluster.address)


def log_of(folder):
    return (folder / "log.txt").read_text()


def test_a_node_that_is_removed_and_one_that_is_added_in_the_middle(cluster, add_node, tmp_path, faults):
    faults.inject("a node of a Ray cluster lost, another added")
    first, _ = add_node(), add_node()
    driver = sweep_on(cluster, tmp_path, 3, "[2]", 2, 0.6)
    wait_for_steps(tmp_path, 4 * CHECKPOINT_STEPS, timeout=240)  # both ranks of two runs, or of one and the next
    cluster.remove_node(first, allow_graceful=False)
    add_node()
    assert driver.wait(400) == 0, log_of(tmp_path)
    records = list(sweep_folder(tmp_path).records())
    assert [record.loss for record in records] == [undisturbed_loss()] * 3
    outcomes = [attempt.outcome for record in records for attempt in record.attempts]
    assert "interrupted" in outcomes, "the node was in use"
    assert set(outcomes) == {"interrupted", "completed"}
    assert any("Ray lost a node" in (attempt.reason or "") for record in records for attempt in record.attempts)
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("a node of a Ray cluster lost, another added", cost, allowed=2 * CHECKPOINT_STEPS)


def test_a_point_across_two_nodes_waits_for_the_second(cluster, add_node, tmp_path):
    """Two nodes of one core each are asked for, and one is there: Ray holds the run until another comes."""
    add_node(1)
    driver = sweep_on(cluster, tmp_path, 1, "[2]", 1, 0.1, "hardware.num_nodes=2")
    deadline = time.monotonic() + 120
    while not list(sweep_folder(tmp_path).path.glob("ray")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(10)
    assert driver.poll() is None, log_of(tmp_path)
    assert not list(sweep_folder(tmp_path).path.glob("runs/*/attempt-*"))
    add_node(1)
    assert driver.wait(300) == 0, log_of(tmp_path)
    (record,) = sweep_folder(tmp_path).records()
    assert record.loss == undisturbed_loss()
    assert record.attempts[0].world_size == 2


def test_a_node_that_does_not_see_the_folder_ends_the_sweep_in_one_line(cluster, add_node, tmp_path):
    driver = sweep_on(cluster, tmp_path, 1, "[1]", 1, 0.0)
    plan, deadline = sweep_folder(tmp_path).plan, time.monotonic() + 120
    while not (plan.exists() and (plan.parent / "ray").exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    plan.unlink()  # as where the node's folder of that path is another
    add_node(1)
    assert driver.wait(300) == 2, log_of(tmp_path)
    assert "set output_root to a folder on a file system that all nodes mount" in log_of(tmp_path)
    assert "Traceback" not in log_of(tmp_path)


def test_a_sweep_that_is_stopped_goes_on_from_its_checkpoints(cluster, add_node, tmp_path, faults):
    faults.inject("SIGTERM, SIGUSR1, SIGUSR2 or SIGINT")
    add_node()
    driver = sweep_on(cluster, tmp_path, 2, "[2]", 2, 0.5)
    wait_for_steps(tmp_path, 2 * CHECKPOINT_STEPS, timeout=240)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(200) == 75, log_of(tmp_path)
    assert processes_of(tmp_path) == []
    again = sweep_on(cluster, tmp_path, 2, "[2]", 2, 0.05)
    assert again.wait(300) == 0, log_of(tmp_path)
    records = list(sweep_folder(tmp_path).records())
    assert [record.loss for record in records] == [undisturbed_loss()] * 2
    assert "preempted" in {attempt.outcome for record in records for attempt in record.attempts}
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("SIGTERM, SIGUSR1, SIGUSR2 or SIGINT", cost, allowed=0)


def test_an_address_at_which_nobody_answers(tmp_path):
    driver = start(tmp_path, 1, "[1]", 1, 0.0, TOY_EXECUTOR="ray", RAY_ADDRESS="127.0.0.1:1")
    assert driver.wait(300) == 2, log_of(tmp_path)
    assert "is RAY_ADDRESS right?" in log_of(tmp_path)


def test_what_is_asked_for_is_shown_before(make_plan, capsys):
    plan = make_plan(2, num_gpus="[2]")
    show_dry_run(plan, "ray", None)
    shown = capsys.readouterr().out
    assert "2 placement groups" in shown
    assert "1 x (2 CPUs" in shown
    assert "STRICT_PACK" in shown
    (group, _) = plan_groups(plan)
    assert group.bundles[0]["memory"] > 2**30
    assert os.fspath(plan.folder) not in shown
    assert JsonLines(plan.folder / "events.jsonl").read() == [], "nothing is written"

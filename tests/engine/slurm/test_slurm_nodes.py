"""Nodes of a real SLURM are lost, drained and come back; what ran there goes on elsewhere."""

from __future__ import annotations

import pytest

from helpers.engine.drivers import let_go, wait_until, wait_until_held
from helpers.engine.toy import CHECKPOINT_STEPS, steps_trained_twice, undisturbed_loss

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.long]


def test_a_node_that_loses_its_power_and_comes_back(cluster, faults):
    """SLURM puts the job back into its queue; it goes on from the newest checkpoint, on the node that is left."""
    faults.inject("a node of SLURM lost, and back")
    process = cluster.start(1, "[1]", 2, 0.0, held=True)
    wait_until_held(cluster.folder)
    (job,) = cluster.job_ids()
    lost = cluster.node_of(job)
    cluster.kill_node(lost)
    cluster.wait_for_node(lost, "down*", "down")
    let_go(cluster.folder)
    assert process.wait(240) == 0, cluster.log
    (record,) = cluster.sweep.records()
    assert record.loss == undisturbed_loss()
    assert [attempt.outcome for attempt in record.attempts] == ["interrupted", "completed"], "no failure of the run"
    assert record.attempts[-1].start_step == CHECKPOINT_STEPS
    assert cluster.job_ids() == [job], "requeued by the cluster, not submitted again"
    cluster.start_node(lost)
    cluster.wait_for_node(lost, "idle")
    cost = steps_trained_twice(cluster.sweep.path)
    faults.cost("a node of SLURM lost, and back", cost, allowed=CHECKPOINT_STEPS)


def test_a_run_on_two_nodes_goes_on_when_the_one_that_was_lost_is_back(cluster, faults):
    faults.inject("a node of SLURM lost, and back")
    settings = ("hardware.num_nodes=2", "training.global_batch_tokens=2048", "execution.hang_timeout=60")
    process = cluster.start(1, "[2]", 1, 0.0, *settings, held=True)
    wait_until_held(cluster.folder, 2)
    cluster.kill_node("n2")
    cluster.wait_for_node("n2", "down*", "down")
    cluster.start_node("n2")
    let_go(cluster.folder)
    assert process.wait(240) == 0, cluster.log
    (record,) = cluster.sweep.records()
    assert record.loss == undisturbed_loss()
    assert {attempt.outcome for attempt in record.attempts[:-1]} == {"interrupted"}, "no failure of the run"
    assert record.attempts[-1].start_step == CHECKPOINT_STEPS
    cost = steps_trained_twice(cluster.sweep.path)
    faults.cost("a node of SLURM lost, and back", cost, allowed=CHECKPOINT_STEPS)


def test_a_node_that_is_drained_ends_what_it_has_and_is_given_no_more(cluster, faults):
    faults.inject("a node of SLURM drained")
    process = cluster.start(1, "[1]", 2, 0.0, held=True)
    wait_until_held(cluster.folder)
    (job,) = cluster.job_ids()
    node = cluster.node_of(job)
    cluster.call("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        let_go(cluster.folder)
        assert process.wait(240) == 0, cluster.log
        (record,) = cluster.sweep.records()
        assert len(record.attempts) == 1
        (cluster.folder / "outputs").rename(cluster.folder / "first")
        cluster.finish(1, "[1]", 2, 0.0)
        second = cluster.job_ids()[0]
        assert cluster.call("sacct", "-n", "-X", "-P", "-j", second, "-o", "NodeList").strip() not in ("", node)
    finally:
        cluster.call("scontrol", "update", f"nodename={node}", "state=resume")
    wait_until(lambda: cluster.call("squeue", "-h").strip() == "", cluster.folder)
    cost = steps_trained_twice(cluster.folder / "first" / "toy")
    faults.cost("a node of SLURM drained", cost, allowed=0)

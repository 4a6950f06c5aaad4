"""The head of a Ray cluster is lost: the sweep ends in words, and goes on once there is another."""

from __future__ import annotations

import pytest

from helpers.engine.drivers import let_go, processes_of, start, sweep_folder, wait_until, wait_until_held
from helpers.engine.toy import CHECKPOINT_STEPS, steps_trained_twice, undisturbed_loss

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'flopsfit-ds[ray]'")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
ROOM = 64 * 2**30
"""Of memory that a node says it has: Ray takes its word."""


@pytest.fixture
def make_cluster(monkeypatch):
    """Clusters of a head that runs nothing and one node, one after another."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "10")  # a minute if nothing is said
    made = []

    def make():
        made.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "memory": 2**30}))
        made[-1].add_node(num_cpus=2, memory=ROOM)
        return made[-1]

    yield make
    for cluster in made:
        cluster.shutdown()


def test_the_head_is_lost_and_the_same_command_goes_on_with_another(make_cluster, tmp_path, faults):
    faults.inject("the head of a Ray cluster lost, and back")
    cluster = make_cluster()
    options = {"TOY_EXECUTOR": "ray"}
    driver = start(tmp_path, 1, "[2]", 2, 0.0, held=True, RAY_ADDRESS=cluster.address, **options)
    wait_until_held(tmp_path, 2, timeout=240)
    cluster.remove_node(cluster.head_node, allow_graceful=False)
    code = driver.wait(300)
    log = (tmp_path / "log.txt").read_text()
    assert code == 2, log
    assert "Ray's head is lost" in log
    cluster.shutdown()
    wait_until(lambda: not processes_of(tmp_path), tmp_path)
    let_go(tmp_path)
    again = start(tmp_path, 1, "[2]", 2, 0.0, RAY_ADDRESS=make_cluster().address, **options)
    assert again.wait(300) == 0, (tmp_path / "log.txt").read_text()
    (record,) = sweep_folder(tmp_path).records()
    assert record.loss == undisturbed_loss()
    assert record.attempts[-1].start_step == CHECKPOINT_STEPS
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("the head of a Ray cluster lost, and back", cost, allowed=CHECKPOINT_STEPS)

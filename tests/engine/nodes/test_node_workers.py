"""Workers of a node that cannot all be started."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.engine.fork.server import ForkServer, pickle_task
from flopsfit_ds.engine.nodes.workers import NodeWorkers
from flopsfit_ds.train.order import WorkerOrder


class ServerOfOne(ForkServer):
    """Forks rank 0 and no other."""

    first = None

    def fork(self, order, task, visible_devices):
        if order.rank:
            raise LaunchError("the server that forks workers ends each time it is started")
        self.first = super().fork(order, task, visible_devices)
        return self.first


def test_ranks_that_were_started_are_ended_where_a_later_one_cannot_be(tmp_path):
    (tmp_path / "attempt-1").mkdir()
    server = ServerOfOne("helpers.engine.toy_phases:never_end", ())
    workers = NodeWorkers(server, lambda run_id: pickle_task(None), (None, None))
    order = WorkerOrder(str(tmp_path), 1, 0, 2, 0, 2, None, "", 0, 1, 0, "none", 1, 1, False)
    with pytest.raises(LaunchError):
        workers.start("run", [order, replace(order, rank=1)], [0, 1])
    deadline = time.monotonic() + 60
    while server.first.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.first.exit_code == -9

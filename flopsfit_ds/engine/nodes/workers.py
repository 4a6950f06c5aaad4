"""The workers of one node: groups of forked ranks, started together and ended together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

from flopsfit_ds.engine.fork.processes import kill_session
from flopsfit_ds.engine.fork.server import ForkServer, Worker
from flopsfit_ds.train.order import WorkerOrder


@dataclass
class _Group:
    """The ranks of one attempt that run on this node."""

    workers: list[Worker]
    exits: dict[int, int] = field(default_factory=dict)

    def running(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.rank not in self.exits]


class NodeWorkers:
    """Starts, watches and ends the ranks that run on this node. No other process of the node forks workers."""

    def __init__(self, server: ForkServer, task_of: Callable[[str], bytes], devices: tuple[str | None, ...]) -> None:
        """Take charge of a node.

        Args:
            server: Forks the workers.
            task_of: The pickled task of a run.
            devices: Of the node's slots, entries for CUDA_VISIBLE_DEVICES.
        """
        self._server = server
        self._task_of = task_of
        self._devices = devices
        self._groups: dict[str, _Group] = {}

    def start(self, run_id: str, orders: list[WorkerOrder], slots: list[int]) -> None:
        """Fork the ranks of an attempt.

        Args:
            run_id: The run.
            orders: One a rank on this node.
            slots: Numbers of the node's slots, rank by rank.

        Raises:
            LaunchError: The server cannot fork; ranks that were started have been ended.
        """
        devices = [self._devices[slot] for slot in slots]
        visible = None if None in devices else ",".join(str(device) for device in devices)
        task = self._task_of(run_id)
        group = self._groups[run_id] = _Group([])
        try:
            for order in orders:
                group.workers.append(self._server.fork(order, task, visible))
        except Exception:
            self.signal(run_id, signal.SIGKILL)
            del self._groups[run_id]
            raise

    def reap(self) -> dict[str, dict[int, int]]:
        """Exit codes that became known since the last call: by run and rank."""
        news: dict[str, dict[int, int]] = {}
        for run_id, group in self._groups.items():
            for worker in group.running():
                code = worker.exit_code
                if code is not None:
                    kill_session(worker.identity)  # what the worker itself had started
                    group.exits[worker.rank] = code
                    news.setdefault(run_id, {})[worker.rank] = code
        return news

    def signal(self, run_id: str, number: int) -> None:
        """Send a signal to the ranks of a run; SIGKILL reaches all that they have started."""
        group = self._groups.get(run_id)
        for worker in group.running() if group else []:
            if number == signal.SIGKILL:
                kill_session(worker.identity)
            else:
                with suppress(ProcessLookupError):
                    os.kill(worker.identity.pid, number)

    def stopped_ranks(self, run_id: str) -> list[int]:
        """Ranks that a signal such as SIGSTOP holds."""
        group = self._groups.get(run_id)
        return [worker.rank for worker in group.running() if worker.identity.is_stopped] if group else []

    def forget(self, run_id: str) -> None:
        """Drop a run whose ranks have all ended."""
        group = self._groups.pop(run_id, None)
        for worker in group.workers if group else []:
            worker.process.join()
            worker.process.close()

    def wait(self, others: list[Any], timeout_seconds: float) -> list[Any]:
        """Wait until a rank ends or one of `others` becomes readable; which of `others` did."""
        sentinels = [worker.process.sentinel for group in self._groups.values() for worker in group.running()]
        ready = connection.wait([*sentinels, *others], timeout_seconds)
        return [item for item in others if item in ready]

    def end_all(self) -> None:
        """SIGKILL everything, and wait until it is gone."""
        for run_id in list(self._groups):
            self.signal(run_id, signal.SIGKILL)
        for run_id in list(self._groups):
            self.forget(run_id)

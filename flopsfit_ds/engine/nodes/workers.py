"""The workers of one node: groups of forked ranks, started together and ended together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

from flopsfit_ds.engine.fork.processes import ProcessIdentity, kill_session
from flopsfit_ds.engine.fork.server import ForkAbandonedError, ForkServer, Worker
from flopsfit_ds.train.order import EXIT_PREEMPTED, WorkerOrder

_LOOK_SECONDS = 1.0
"""Between two looks at whether a worker whose exit is not known still runs."""


@dataclass
class _Group:
    """The ranks of one attempt that run on this node."""

    workers: list[Worker]
    exits: dict[int, int] = field(default_factory=dict)
    unborn: dict[int, int] = field(default_factory=dict)

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
        self._looked: dict[ProcessIdentity, float] = {}
        self._gone: dict[ProcessIdentity, float] = {}

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
        except ForkAbandonedError:  # no rank of it has begun: its store waits for all of them
            self.signal(run_id, signal.SIGKILL)
            group.unborn = {order.rank: EXIT_PREEMPTED for order in orders}
        except Exception:
            self.signal(run_id, signal.SIGKILL)
            del self._groups[run_id]
            raise

    def reap(self) -> dict[str, dict[int, int]]:
        """Exit codes that became known since the last call: by run and rank."""
        news: dict[str, dict[int, int]] = {}
        for run_id, group in self._groups.items():
            if group.unborn:
                news[run_id], group.unborn = group.unborn, {}
                group.exits |= news[run_id]
            for worker in group.running():
                code = worker.exit_code
                if code is None:
                    self._see_to_server(worker)
                else:
                    kill_session(worker.identity)  # what the worker itself had started
                    group.exits[worker.rank] = code
                    news.setdefault(run_id, {})[worker.rank] = code
        return news

    def _see_to_server(self, worker: Worker) -> None:
        """End a server that does not say how a worker ended which is gone: it is stopped, or stuck."""
        now = time.monotonic()
        if now - self._looked.get(worker.identity, now - _LOOK_SECONDS) < _LOOK_SECONDS:
            return
        self._looked[worker.identity] = now
        if worker.identity.is_alive:
            return
        if now - self._gone.setdefault(worker.identity, now) > self._server.patience_seconds:
            self._server.end_silent()

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
            self._looked.pop(worker.identity, None)
            self._gone.pop(worker.identity, None)
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

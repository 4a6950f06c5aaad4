"""The working rank of a node that is not the driver's: forks, ends and reports, as it is told."""

from __future__ import annotations

import logging
import secrets
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

from flopsfit_ds.base.errors import FlopsfitError, LaunchError
from flopsfit_ds.engine.nodes.control.mailbox import (
    JOIN_PATIENCE_SECONDS,
    SILENCE_SECONDS,
    Farewell,
    Hello,
    Mailbox,
    beating,
)
from flopsfit_ds.engine.nodes.control.store import Control
from flopsfit_ds.engine.nodes.launch import LaunchedRank
from flopsfit_ds.engine.nodes.workers import NodeWorkers
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slots import NodeSlots
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.train.order import WorkerOrder

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.05
"""Longest wait before the driver's next order is read: it adds so much to the start of a run."""
EXIT_DRIVER_LOST = 1  # an error, to whatever launched this rank


class NodeAgent:
    """Obeys the driver until it says to leave, or is not heard any more."""

    def __init__(self, place: LaunchedRank, control: Control, folder: SweepFolder, signals: Signals) -> None:
        """Take charge of a node.

        Args:
            place: Which node.
            control: Shared with the driver.
            folder: The sweep's folder, which must be the driver's.
            signals: Passed on to the driver.
        """
        self._farewell = Farewell(control.store, control.seal)
        self._place = place
        self._control = control
        self._folder = folder
        self._signals = signals
        self._told_signal = False
        self._come()

    def _come(self) -> None:
        """Say hello, by a name that no earlier stay of this node had."""
        store, seal, node, session = self._control.store, self._control.seal, self._place.node, secrets.token_hex(8)
        self._orders = Mailbox(store, f"orders/{node}/{session}", seal)
        self._reports = Mailbox(store, f"reports/{node}/{session}", seal)
        self._hello = Hello(store, seal, node, session)

    def beating(self) -> AbstractContextManager[None]:
        """Meanwhile, show the driver that this node lives."""
        return beating(lambda: (self._hello, self._reports))

    def refuse(self, error: Exception) -> None:
        """Tell the driver why this node cannot take part."""
        message = str(error) if isinstance(error, FlopsfitError) else f"{type(error).__name__}: {error}"
        self._reports.send({"error": message})

    def serve(self, slots: NodeSlots, workers: NodeWorkers) -> int:
        """Offer the slots, and obey.

        Args:
            slots: What this node has.
            workers: Forks and ends its workers.

        Returns:
            The sweep's exit code.
        """
        self._workers = workers
        self._slots = slots
        self._offer()
        try:
            while True:
                code = self._obey()
                if code is not None:
                    return code
                if not self._orders.was_heard and (code := self._farewell.heard()) is not None:
                    return code
                self._report()
                silent_seconds = self._orders.silent_seconds()
                if silent_seconds > (SILENCE_SECONDS if self._orders.was_heard else JOIN_PATIENCE_SECONDS):
                    return EXIT_DRIVER_LOST
                if self._signals.stops and not self._orders.was_heard:
                    return self._signals.exit_code
                self._workers.wait([self._signals], _TICK_SECONDS)
                self._signals.clear_wakeup()
        except RuntimeError:  # torch's error of a store that is gone: the driver has died
            return EXIT_DRIVER_LOST
        finally:
            self._workers.end_all()

    def _offer(self) -> None:
        self._reports.send({"slots": asdict(self._slots)})

    def _obey(self) -> int | None:
        """Carry out all orders at hand; the exit code once there is one."""
        while (order := self._orders.receive()) is not None:
            if order["do"] == "leave":
                self._workers.end_all()
                self._reports.send({"left": True})
                return order["exit_code"]
            if order["do"] == "join_again":
                _log.warning("the driver had taken this node for lost: what runs here is ended, and it joins again")
                self._workers.end_all()
                self._come()
                self._offer()
                continue
            try:
                self._carry_out(order)
            except Exception as error:
                self.refuse(error)
                if not isinstance(error, FlopsfitError):
                    raise
        return None

    def _carry_out(self, order: dict[str, Any]) -> None:
        run_id = order.get("run_id", "")
        if order["do"] == "start":
            folder = self._folder.run(run_id)
            own = str(folder.path.absolute())  # a path is this node's own to say, not another process's
            orders = [replace(WorkerOrder(**each), run_folder=own) for each in order["orders"]]
            if not folder.attempt(orders[0].attempt).is_dir():
                raise LaunchError(f"{folder.path}: not the driver's folder; share output_root between nodes")
            self._workers.start(run_id, orders, order["slots"])
        elif order["do"] == "signal":
            self._reports.send({"stopped": {run_id: self._workers.stopped_ranks(run_id)}})
            self._workers.signal(run_id, order["number"])
        elif order["do"] == "forget":
            self._workers.forget(run_id)
        elif order["do"] == "end":
            self._workers.end_all()

    def _report(self) -> None:
        exits = self._workers.reap()
        if exits:
            self._reports.send({"exits": exits})
        if self._signals.received is not None and not self._told_signal:
            self._told_signal = True
            self._reports.send({"signal": int(self._signals.received)})

"""The launched executor: slots on several nodes, one working rank on each; the driver is the first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from flopsfit_ds.engine.executor import Report
from flopsfit_ds.engine.nodes.control.roster import RemoteNode, Roster
from flopsfit_ds.engine.nodes.patience import Patience
from flopsfit_ds.engine.nodes.slot_executor import SlotExecutor
from flopsfit_ds.engine.nodes.workers import NodeWorkers
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slots import NodeSlots, Slot
from flopsfit_ds.records import SweepFolder

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.05
"""Longest wait before the other nodes' words are read: it adds so much to the end of a run."""
_ROSTER_SECONDS = 1.0
"""Between two looks at which nodes have come or are lost: as often as they show that they live."""


class LaunchedExecutor(SlotExecutor):
    """Runs on the slots of all nodes of a launch; a node may be lost, and another, or the same, may come."""

    def __init__(
        self,
        folder: SweepFolder,
        here: tuple[NodeSlots, NodeWorkers],
        roster: Roster,
        store_host: str,
        signals: Signals,
        patience: Patience,
    ) -> None:
        """Take charge of all nodes, once they have joined.

        Args:
            folder: The sweep's folder, on a file system that all nodes share.
            here: Slots and workers of the driver's node.
            roster: Of the others.
            store_host: Where the other nodes reach this one.
            signals: Whose arrival ends a wait.
            patience: How long an attempt may be silent, or stopping.

        Raises:
            LaunchError: A node cannot take part.
            SweepStoppedError: A signal came before all had joined.
        """
        slots, workers = here
        super().__init__(folder, {slots.node: here}, store_host, patience)
        self._here = workers
        self._roster = roster
        self._signals = signals
        self._tell: Callable[[Sequence[Slot]], None] = lambda slots: None
        self._next_look = 0.0
        there = roster.gather()
        names = [slots.hostname, *(node.slots.hostname for node in there if node.slots is not None)]
        self._shared_names = {name for name in names if names.count(name) > 1}
        for node in there:
            self._gain(node)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Of all nodes that are there."""
        found: list[Slot] = []
        for number, (node, _) in sorted(self._nodes.items()):
            name = f"{node.hostname}/{number}" if node.hostname in self._shared_names else node.hostname
            found += node.slots(f"{name}:")
        return tuple(found)

    def tell_of_slots(self, tell: Callable[[Sequence[Slot]], None]) -> None:
        """From now on, call this with all slots whenever a node is lost or has come."""
        self._tell = tell

    def _gain(self, node: RemoteNode) -> None:
        assert node.slots is not None
        others = {known.hostname for number, (known, _) in self._nodes.items() if number != node.number}
        if node.slots.hostname in others:
            self._shared_names.add(node.slots.hostname)
        self._nodes[node.number] = (node.slots, node)

    def poll(self, timeout_seconds: float) -> list[Report]:
        """See `Executor`."""
        self._see_to_nodes()
        return super().poll(timeout_seconds)

    def _see_to_nodes(self) -> None:
        """Let go of nodes that are lost, and take in those that have come."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _ROSTER_SECONDS
        changes = self._roster.look()
        for reason in changes.refused:
            _log.warning("%s; the sweep goes on without it", reason)
        for node in changes.lost:
            self._lose(node.number, f"{node.name} was lost")
            _log.warning(
                "%s has not been heard for long, or was started again: its runs go on from their checkpoints, on other "
                "slots or on its own once it has joined", node.name,
            )  # fmt: skip
            self._folder.log_event("node_lost", node=node.number)
        for node in changes.came:
            self._gain(node)
            _log.warning("%s has joined", node.name)
            self._folder.log_event("node_joined", node=node.number)
        if changes.lost or changes.came:
            self._tell(self.slots)

    def _wait(self, timeout_seconds: float) -> None:
        self._here.wait([self._signals], min(timeout_seconds, _TICK_SECONDS))
        self._signals.clear_wakeup()

    def close(self, exit_code: int) -> None:
        """See `Executor`."""
        super().close(exit_code)
        self._roster.dismiss(exit_code)

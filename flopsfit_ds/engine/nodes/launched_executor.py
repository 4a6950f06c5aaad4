"""The launched executor: slots on several nodes, one working rank on each; the driver is the first."""

from __future__ import annotations

from collections.abc import Sequence

from flopsfit_ds.engine.nodes.patience import Patience
from flopsfit_ds.engine.nodes.remote import RemoteNode, dismiss
from flopsfit_ds.engine.nodes.slot_executor import SlotExecutor
from flopsfit_ds.engine.nodes.workers import NodeWorkers
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slots import NodeSlots
from flopsfit_ds.records import SweepFolder

_TICK_SECONDS = 0.05
"""Longest wait before the other nodes' words are read: it adds so much to the end of a run."""


class LaunchedExecutor(SlotExecutor):
    """Runs on the slots of all nodes of a launch."""

    def __init__(
        self,
        folder: SweepFolder,
        here: tuple[NodeSlots, NodeWorkers],
        there: Sequence[tuple[NodeSlots, RemoteNode]],
        store_host: str,
        signals: Signals,
        patience: Patience,
    ) -> None:
        """Take charge of all nodes.

        Args:
            folder: The sweep's folder, on a file system that all nodes share.
            here: Slots and workers of the driver's node.
            there: Of the others.
            store_host: Where the other nodes reach this one.
            signals: Whose arrival ends a wait.
            patience: How long an attempt may be silent, or stopping.
        """
        nodes = {slots.node: (slots, node) for slots, node in (here, *there)}
        super().__init__(folder, nodes, store_host, patience)
        self._here = here[1]
        self._remote = [node for _, node in there]
        self._signals = signals

    def _wait(self, timeout_seconds: float) -> None:
        self._here.wait([self._signals], min(timeout_seconds, _TICK_SECONDS))
        self._signals.clear_wakeup()

    def close(self, exit_code: int) -> None:
        """See `Executor`."""
        super().close(exit_code)
        dismiss(self._remote, exit_code)

"""The local executor: this machine's slots, without any launcher, or with one that started ranks on one node only."""

from __future__ import annotations

from flopsfit_ds.engine.nodes.patience import Patience
from flopsfit_ds.engine.nodes.slot_executor import SlotExecutor
from flopsfit_ds.engine.nodes.stores import LOOPBACK
from flopsfit_ds.engine.nodes.workers import NodeWorkers
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slots import NodeSlots
from flopsfit_ds.records import SweepFolder


class LocalExecutor(SlotExecutor):
    """Runs on the slots of this machine."""

    def __init__(
        self,
        folder: SweepFolder,
        slots: NodeSlots,
        workers: NodeWorkers,
        signals: Signals,
        patience: Patience,
    ) -> None:
        """Take charge of this machine.

        Args:
            folder: The sweep's folder.
            slots: What the machine has.
            workers: Forks and ends its workers.
            signals: Whose arrival ends a wait.
            patience: How long an attempt may be silent, or stopping.
        """
        super().__init__(folder, {slots.node: (slots, workers)}, LOOPBACK, patience)
        self._workers = workers
        self._signals = signals

    def _wait(self, timeout_seconds: float) -> None:
        self._workers.wait([self._signals], timeout_seconds)
        self._signals.clear_wakeup()

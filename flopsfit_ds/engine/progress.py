"""What the engine tells whoever shows a sweep to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.plan.sweep_plan import RunPlan
from flopsfit_ds.records import Attempt, RunRecord


class Progress(Protocol):
    """Hears what happens; called from the driver's thread, and must return quickly."""

    def on_review(self, done: int, total: int) -> None:
        """Placements are checked by simulation before anything is trained: so many of so many."""
        ...

    def on_sweep(self, runs: Sequence[RunPlan], records: Sequence[RunRecord], slots: Sequence[Slot]) -> None:
        """The sweep begins: all its runs, the records that exist already, and the slots (none under SLURM)."""
        ...

    def on_start(self, run: RunPlan, slots: Sequence[Slot]) -> None:
        """An attempt begins."""
        ...

    def on_step(self, run_id: str, step: int, loss: float | None) -> None:
        """A run got further: optimiser steps done, and the newest training loss that is known."""
        ...

    def on_restart(self, run: RunPlan, reason: str) -> None:
        """An attempt did not go on from the newest checkpoint that there is."""
        ...

    def on_attempt_end(self, run: RunPlan, attempt: Attempt) -> None:
        """An attempt ended, well or not."""
        ...

    def on_end(self, record: RunRecord) -> None:
        """A run has its record."""
        ...


class Silence:
    """Shows nothing."""

    def on_review(self, done: int, total: int) -> None:
        """See `Progress`."""

    def on_sweep(self, runs: Sequence[RunPlan], records: Sequence[RunRecord], slots: Sequence[Slot]) -> None:
        """See `Progress`."""

    def on_start(self, run: RunPlan, slots: Sequence[Slot]) -> None:
        """See `Progress`."""

    def on_step(self, run_id: str, step: int, loss: float | None) -> None:
        """See `Progress`."""

    def on_restart(self, run: RunPlan, reason: str) -> None:
        """See `Progress`."""

    def on_attempt_end(self, run: RunPlan, attempt: Attempt) -> None:
        """See `Progress`."""

    def on_end(self, record: RunRecord) -> None:
        """See `Progress`."""

"""What an executor is: something that carries out runs, in attempts, on slots or as jobs of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.plan.layouts import Layout
from flopsfit_ds.records import Attempt

Ending = Literal["checkpoint", "kill"]


@dataclass(frozen=True)
class Assignment:
    """A run, how, and where.

    Attributes:
        run_id: The run.
        layout: How this attempt is carried out.
        slots: Where, rank by rank; empty where a cluster's own scheduler decides.
    """

    run_id: str
    layout: Layout
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Report:
    """What became known of a run in progress.

    Attributes:
        run_id: The run.
        ended: The attempt is over and can be collected.
        step: Optimiser steps done, where the workers have said so.
        phase: What the workers do: `start`, `train`, `eval`, `checkpoint`, or a job's state.
        restarted: Why the attempt did not go on from the newest checkpoint, once that is known.
    """

    run_id: str
    ended: bool
    step: int | None = None
    phase: str | None = None
    restarted: str | None = None


class Executor(Protocol):
    """Carries out runs. One driver thread calls it."""

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Start attempts.

        Raises:
            LaunchError: Nothing can be started any more.
            SweepFolderError: The attempt's folder cannot be written.
        """
        ...

    def poll(self, timeout_seconds: float) -> list[Report]:
        """Wait until something happens, at most so long, and say what."""
        ...

    def cancel(self, run_id: str, how: Ending) -> None:
        """Ask for a checkpoint and an end, or end at once; the run is reported as ended later, and then collected."""
        ...

    def collect(self, run_id: str) -> tuple[Attempt, ...]:
        """Attempts of a run that has ended, judged and written down, oldest first; what they held is free again."""
        ...

    def close(self, exit_code: int) -> None:
        """End everything that still runs, on all nodes; `exit_code` is what launched ranks exit with."""
        ...

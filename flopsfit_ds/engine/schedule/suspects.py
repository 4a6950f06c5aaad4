"""Which slots look broken: where runs fail before their first step that do not fail so elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from flopsfit_ds.engine.slots import Slot

NUM_RUNS = 3
"""Different runs that must have failed on a slot before it is taken for broken."""


class Suspects:
    """For each run that failed before its first step, the slots that may be to blame.

    A run that has failed on several sets of slots leaves those that were in all of them; one that leaves none is
    itself to blame, and one that leaves several, because it takes several, proves nothing.
    """

    def __init__(self) -> None:
        """Suspect nothing."""
        self._blamed: dict[str, frozenset[Slot]] = {}

    def note_failure(self, run_id: str, slots: Iterable[Slot]) -> None:
        """A run failed on these slots before its first step."""
        slots = frozenset(slots)
        self._blamed[run_id] = self._blamed.get(run_id, slots) & slots

    def note_step(self, slots: Iterable[Slot]) -> None:
        """A run made a step on these slots: they work."""
        for run_id, blamed in self._blamed.items():
            self._blamed[run_id] = blamed.difference(slots)

    @property
    def broken(self) -> frozenset[Slot]:
        """Slots that so many different runs blame alone."""
        counts = Counter(next(iter(blamed)) for blamed in self._blamed.values() if len(blamed) == 1)
        return frozenset(slot for slot, count in counts.items() if count >= NUM_RUNS)

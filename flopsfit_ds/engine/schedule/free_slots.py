"""When each slot becomes free: where a run can start at once, and what has to be kept free for a wider one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from flopsfit_ds.engine.slots import Slot


@dataclass(frozen=True)
class Claim:
    """Slots for one run, and from when on.

    Attributes:
        slots: Rank by rank.
        start: Seconds from now.
    """

    slots: tuple[Slot, ...]
    start: float


@dataclass(frozen=True)
class Use:
    """What a run in progress takes.

    Attributes:
        slots: Rank by rank.
        lanes: Of each slot, how many of its equal shares.
        seconds: Until it is expected to end; more than 0.
    """

    slots: tuple[Slot, ...]
    lanes: int
    seconds: float


class FreeSlots:
    """Seconds from now at which each slot becomes free; claims are placed one after another, none is ever moved.

    A slot has one lane, or several where small runs may share it; a run of several slots takes whole ones.
    """

    def __init__(self, slots: Iterable[Slot], num_lanes: int, uses: Sequence[Use]) -> None:
        """Start from the present.

        Args:
            slots: All slots.
            num_lanes: Lanes of each.
            uses: What runs now.
        """
        self._num_lanes = num_lanes
        self._lanes: dict[Slot, list[float]] = {slot: [0.0] * num_lanes for slot in slots}
        self._nodes: dict[int, list[Slot]] = {}
        for slot in self._lanes:
            self._nodes.setdefault(slot.node, []).append(slot)
        self._held: dict[Slot, float] = {}
        for use in uses:
            for slot in use.slots:
                self._take(slot, use.lanes, use.seconds)

    def _take(self, slot: Slot, lanes: int, until: float) -> None:
        times = self._lanes[slot]
        times[:lanes] = [until] * lanes
        times.sort()

    @property
    def has_room_now(self) -> bool:
        """Whether any lane is neither in use nor claimed."""
        return any(times[0] <= 0 for times in self._lanes.values())

    @property
    def has_gaps(self) -> bool:
        """Whether slots are idle because they are kept for a run that starts later."""
        return bool(self._held)

    def earliest(self, num_slots: int, lanes: int, avoid: Set[Slot] = frozenset()) -> Claim:
        """The earliest claim for a run: inside one node where it fits into one, else whole nodes.

        Args:
            num_slots: Slots that it takes.
            lanes: Of each, how many lanes.
            avoid: Slots that it must not have; only for a run that the others of one node hold.

        Raises:
            ValueError: There are fewer slots than that.
        """
        best: list[tuple[float, Slot]] = []
        best_key = (float("inf"), 0)
        for slots in self._nodes.values():
            ordered = sorted(
                ((self._lanes[slot][lanes - 1], slot) for slot in slots if slot not in avoid), key=lambda item: item[0]
            )
            if len(ordered) < num_slots:
                continue
            start = ordered[num_slots - 1][0]
            spare = sum(time <= start for time, _ in ordered)  # prefer the node that it fills
            if (start, spare) < best_key:
                best, best_key = ordered[:num_slots], (start, spare)
        if not best:
            best = self._across_nodes(num_slots)
        return Claim(tuple(sorted(slot for _, slot in best)), max(0.0, *(time for time, _ in best)))

    def _across_nodes(self, num_slots: int) -> list[tuple[float, Slot]]:
        by_node = sorted(self._nodes.values(), key=lambda slots: max(self._lanes[slot][-1] for slot in slots))
        spread = [(self._lanes[slot][-1], slot) for slots in by_node for slot in slots]
        if len(spread) < num_slots:
            raise ValueError(f"{num_slots} slots wanted, {len(spread)} there")
        return spread[:num_slots]

    def place(self, claim: Claim, lanes: int, seconds: float) -> None:
        """Take slots; free ones that a later start leaves idle are kept for it."""
        for slot in claim.slots:
            if claim.start > 0 and self._lanes[slot][lanes - 1] <= 0:
                self._held[slot] = claim.start
            self._take(slot, lanes, claim.start + seconds)

    def gap(self, num_slots: int, seconds: float, avoid: Set[Slot] = frozenset()) -> Claim | None:
        """Slots that are kept for a later start and would be free again by then; None where there are not enough."""
        by_node: dict[int, list[Slot]] = {}
        for slot, until in self._held.items():
            if seconds <= until and slot not in avoid:
                by_node.setdefault(slot.node, []).append(slot)
        for slots in by_node.values():
            if len(slots) >= num_slots:
                chosen = tuple(sorted(slots)[:num_slots])
                for slot in chosen:
                    del self._held[slot]
                return Claim(chosen, 0.0)
        return None

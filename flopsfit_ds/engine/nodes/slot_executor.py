"""Runs on slots: the driver hosts each attempt's rendezvous and watches its heartbeats; nodes fork the workers."""

from __future__ import annotations

import logging
import re
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from flopsfit_ds.base.text import printable
from flopsfit_ds.engine.disk.attempts import EXIT_UNKNOWN, AttemptOutcome, Exits, close_attempt, open_attempt
from flopsfit_ds.engine.executor import Assignment, Ending, Report
from flopsfit_ds.engine.nodes.patience import Pace, Patience, split_beat
from flopsfit_ds.engine.nodes.stores import LOOPBACK, host_store
from flopsfit_ds.engine.slots import NodeSlots
from flopsfit_ds.records import Attempt, RunFolder, SweepFolder
from flopsfit_ds.train.order import EXIT_OUTCOME_WRITTEN, EXIT_PREEMPTED, WorkerOrder

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
_log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 0.5
"""How often the driver reads the heartbeats of each attempt."""
_STEP = re.compile(rb"[0-9]{1,12}")
_LONGEST_TEXT = 2000
"""Bytes of what a worker says in words that are kept: each checkpoint that was passed over takes some 200."""
_BEAT = re.compile(rb"(?:[0-9]{1,12}|[a-z]{1,16})(?: \([0-9]{1,12}\))?")
"""A number of steps or a phase, and how often it was told."""
DUMP_SECONDS = 2.0
"""Time for workers to write their stacks before they are ended."""
GAP_SECONDS = 5.0
"""Between two looks, which otherwise are half a second apart: this process was suspended, or very busy."""
_OWN_NODE = 0
"""Number of the driver's node."""
PEER_SECONDS = 60.0
"""How long ranks may outlive a peer that ended well; they all leave the loop at the same step."""


class Node(Protocol):
    """The workers of one node: here, or on another host."""

    def start(self, run_id: str, orders: list[WorkerOrder], slots: list[int]) -> None:
        """Fork the ranks of an attempt."""
        ...

    def reap(self) -> dict[str, dict[int, int]]:
        """Exit codes that became known since the last call, by run and rank."""
        ...

    def signal(self, run_id: str, number: int) -> None:
        """Signal the ranks of a run."""
        ...

    def stopped_ranks(self, run_id: str) -> list[int]:
        """Ranks that a signal such as SIGSTOP holds, where that can be seen."""
        ...

    def forget(self, run_id: str) -> None:
        """Drop a run whose ranks have all ended."""
        ...

    def end_all(self) -> None:
        """SIGKILL everything."""
        ...


@dataclass
class _Running:
    """An attempt in progress."""

    assignment: Assignment
    folder: RunFolder
    attempt: Attempt
    store: TCPStore
    store_host: str
    began: float
    exits: dict[int, int]
    beats: list[str]
    last_beat: float
    pace: Pace
    cause: str | None = None
    cause_outcome: AttemptOutcome | None = None
    kill_at: float | None = None
    killed: bool = False
    checkpoint_seconds: float | None = None
    next_look: float = 0.0
    restarted: str | None = None

    @property
    def world_size(self) -> int:
        return self.assignment.layout.num_slots

    @property
    def phase(self) -> str:
        return split_beat(self.beats[0])[1]

    @property
    def ended(self) -> bool:
        return len(self.exits) == self.world_size


class SlotExecutor(ABC):
    """Executes attempts on the slots of one node or several.

    Attributes:
        lost_steps: Optimiser steps done since the last checkpoint of each run that was stopped without another.
    """

    def __init__(
        self,
        folder: SweepFolder,
        nodes: Mapping[int, tuple[NodeSlots, Node]],
        store_host: str,
        patience: Patience,
    ) -> None:
        """Take charge of nodes.

        Args:
            folder: The sweep's folder.
            nodes: Slots and workers, by number of the node.
            store_host: Where the nodes reach this process.
            patience: How long an attempt may be silent, or stopping.
        """
        import torch.distributed  # noqa: F401 - for seconds; the fork servers are loading meanwhile

        self._folder = folder
        self._nodes = dict(nodes)
        self._store_host = store_host
        self._patience = patience
        self._running: dict[str, _Running] = {}
        self.lost_steps: dict[str, int] = {}
        self._looked = time.monotonic()

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """See `Executor`."""
        for assignment in assignments:
            self._start(assignment)

    def _start(self, assignment: Assignment) -> None:
        began = time.monotonic()
        folder = self._folder.run(assignment.run_id)
        attempt = open_attempt(folder, assignment)
        only_here = {slot.node for slot in assignment.slots} == {_OWN_NODE}
        store = host_store(timedelta(seconds=60), only_here=only_here)
        world_size = assignment.layout.num_slots
        for rank in range(world_size):
            store.set(_beat_key(rank), "start")
        host = LOOPBACK if only_here else self._store_host
        pace = Pace(assignment.layout.predicted_step_seconds)
        running = _Running(assignment, folder, attempt, store, host, began, {}, ["start"] * world_size, began, pace)
        self._running[assignment.run_id] = running
        for number, ranks in _ranks_by_node(assignment).items():
            slots, node = self._nodes[number]
            orders = [self._order(running, slots, rank, ranks) for rank in ranks]
            node.start(assignment.run_id, orders, [assignment.slots[rank].index for rank in ranks])

    def _order(self, running: _Running, slots: NodeSlots, rank: int, ranks: list[int]) -> WorkerOrder:
        layout = running.assignment.layout
        strategy = layout.strategy
        local_rank = ranks.index(rank)
        return WorkerOrder(
            run_folder=str(running.folder.path.absolute()),
            attempt=running.attempt.number,
            rank=rank,
            world_size=layout.num_slots,
            local_rank=local_rank,
            local_world_size=len(ranks),
            device_index=None if running.assignment.slots[rank].device is None else local_rank,
            store_host=running.store_host,
            store_port=running.store.port,
            num_threads=slots.threads_per_slot,
            zero_stage=strategy.zero_stage,
            offload=strategy.offload,
            micro_batch_size_per_gpu=strategy.micro_batch_size_per_gpu,
            gradient_accumulation_steps=layout.gradient_accumulation_steps,
            activation_checkpointing=strategy.activation_checkpointing,
        )

    def poll(self, timeout_seconds: float) -> list[Report]:
        """See `Executor`."""
        if not any(running.ended for running in self._running.values()):
            self._wait(timeout_seconds)
        self._grant_own_gap()
        for _, node in self._nodes.values():
            for run_id, codes in node.reap().items():
                self._running[run_id].exits.update(codes)
        reports = []
        for run_id, running in self._running.items():
            moved = self._look_at_beats(running)
            self._end_if_needed(running)
            if running.ended or moved:
                reports.append(_report(run_id, running))
        return reports

    def _grant_own_gap(self) -> None:
        """Give every attempt the time in which this process itself stood still: what was suspended does not hang."""
        now = time.monotonic()
        gap = now - self._looked
        self._looked = now
        if gap < GAP_SECONDS:
            return
        _log.warning("this process stood still for %.0f s: no run is taken for hung because of it", gap)
        for running in self._running.values():
            running.last_beat += gap
            running.pace.grant(gap)
            if running.kill_at is not None:
                running.kill_at += gap

    def _lose(self, number: int, reason: str) -> None:
        """Do without a node: what ran there is over, and its peers elsewhere are ended."""
        del self._nodes[number]
        for running in self._running.values():
            ranks = [rank for rank, slot in enumerate(running.assignment.slots) if slot.node == number]
            lost = [rank for rank in ranks if rank not in running.exits]
            running.exits.update(dict.fromkeys(lost, EXIT_UNKNOWN))
            if lost and running.cause_outcome is None:
                running.cause_outcome, running.cause = "interrupted", reason

    def _nodes_of(self, running: _Running) -> list[Node]:
        """Those that take part in an attempt, without such as are lost."""
        numbers = dict.fromkeys(slot.node for slot in running.assignment.slots)
        return [self._nodes[number][1] for number in numbers if number in self._nodes]

    @abstractmethod
    def _wait(self, timeout_seconds: float) -> None:
        """Let time pass until something may have happened; a subclass knows what to wait on."""

    def _look_at_beats(self, running: _Running) -> bool:
        """Read the heartbeats if it is time to; whether one has moved."""
        now = time.monotonic()
        if now < running.next_look:
            return False
        running.next_look = now + HEARTBEAT_SECONDS
        beats = _read_beats(running)
        if beats == running.beats:
            return False
        running.beats, running.last_beat = beats, now
        if running.pace.step is None:
            running.restarted = _read_text(running, "restarted")
        running.pace.note(beats, now)
        return True

    def _end_if_needed(self, running: _Running) -> None:
        """End the peers of a rank that failed, an attempt that hangs, and one whose time for a checkpoint is over."""
        now = time.monotonic()
        if running.ended or running.killed:
            return
        codes = running.exits.values()
        if any(code not in (EXIT_OUTCOME_WRITTEN, EXIT_PREEMPTED) for code in codes):
            running.kill_at = now
        elif codes and running.kill_at is None:
            running.kill_at = now + PEER_SECONDS
        elif self._hangs(running, now):
            self._dump(running, now)
        if running.kill_at is not None and now >= running.kill_at:
            running.killed = True
            if running.checkpoint_seconds is not None and running.cause_outcome == "interrupted":
                running.cause = f"{running.cause}; it was ended before it had written a checkpoint"
            self._signal(running, signal.SIGKILL)

    def _hangs(self, running: _Running, now: float) -> bool:
        """Whether an attempt is silent for too long, in training or while it should write its last checkpoint."""
        if running.kill_at is not None and (running.cause_outcome != "interrupted" or now >= running.kill_at):
            return False
        limit = self._patience.before_hang(running.assignment.run_id, running.pace, running.phase)
        return now - running.last_beat > limit

    def _dump(self, running: _Running, now: float) -> None:
        """Let the ranks of a hung attempt write their stacks, shortly before they are ended."""
        run_id = running.assignment.run_id
        stopped = [rank for _, node in self._nodes.values() for rank in node.stopped_ranks(run_id)]
        where = ", ".join(f"rank {rank} at {beat}" for rank, beat in enumerate(running.beats))
        held = f"; stopped by a signal: {', '.join(f'rank {rank}' for rank in stopped)}" if stopped else ""
        running.cause_outcome = "hung"
        running.cause = (
            f"silent for {now - running.last_beat:.0f} s (execution.hang_timeout): {where}{held}; stacks in the logs"
        )
        running.kill_at = now + DUMP_SECONDS
        self._signal(running, signal.SIGUSR1)

    def _signal(self, running: _Running, number: int) -> None:
        for node in self._nodes_of(running):
            node.signal(running.assignment.run_id, number)

    def cancel(self, run_id: str, how: Ending) -> None:
        """See `Executor`."""
        running = self._running[run_id]
        if running.cause_outcome is None:
            running.cause_outcome, running.cause = "interrupted", "the sweep was stopped"
        if running.checkpoint_seconds is None:
            running.checkpoint_seconds = self._patience.for_checkpoint(run_id, running.pace)
        if how == "kill":
            running.kill_at = time.monotonic()
        elif running.kill_at is None:
            running.kill_at = time.monotonic() + running.checkpoint_seconds
            self._signal(running, signal.SIGTERM)

    def collect(self, run_id: str) -> tuple[Attempt, ...]:
        """See `Executor`."""
        running = self._running.pop(run_id)
        assert running.ended, f"{run_id} has not ended"
        for node in self._nodes_of(running):
            node.forget(run_id)
        start_step = _read_step(running, "start_step")
        restarted = running.restarted or _read_text(running, "restarted")
        exits = Exits(running.exits, running.cause, running.cause_outcome, start_step, restarted)
        attempt = close_attempt(running.folder, running.attempt, exits, time.monotonic() - running.began)
        if running.checkpoint_seconds is not None and attempt.outcome not in ("completed", "diverged"):
            running.pace.note(_read_beats(running), time.monotonic())
            saved_step = _read_step(running, "saved_step")
            lost = max(0, (running.pace.step or 0) - (saved_step or start_step or 0))
            if lost or attempt.outcome != "preempted":
                self.lost_steps[run_id] = lost
        return (attempt,)

    def close(self, exit_code: int) -> None:
        """See `Executor`."""
        for _, node in self._nodes.values():
            node.end_all()
        self._running.clear()


def _report(run_id: str, running: _Running) -> Report:
    steps = [step for step, _ in map(split_beat, running.beats) if step is not None]
    return Report(run_id, running.ended, max(steps, default=None), running.phase, running.restarted)


def _read_beats(running: _Running) -> list[str]:
    """The newest heartbeat of each rank; what is none, from whoever else reaches the port, leaves the one before."""
    values = running.store.multi_get([_beat_key(r) for r in range(running.world_size)])
    return [
        value.decode() if _BEAT.fullmatch(value) else before
        for value, before in zip(values, running.beats, strict=True)
    ]


def _read_step(running: _Running, key: str) -> int | None:
    """What a worker noted; None where none has."""
    value = running.store.get(key) if running.store.check([key]) else b""
    return int(value) if _STEP.fullmatch(value) else None


def _read_text(running: _Running, key: str) -> str | None:
    """What a worker said in words; None where none has."""
    if not running.store.check([key]):
        return None
    return printable(running.store.get(key)[:_LONGEST_TEXT].decode(errors="replace"))


def _beat_key(rank: int) -> str:
    return f"heartbeat/{rank}"


def _ranks_by_node(assignment: Assignment) -> dict[int, list[int]]:
    ranks: dict[int, list[int]] = {}
    for rank, slot in enumerate(assignment.slots):
        ranks.setdefault(slot.node, []).append(rank)
    return ranks

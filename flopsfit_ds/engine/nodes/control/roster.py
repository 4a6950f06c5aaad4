"""The other nodes of a launch, as the driver sees them: who is there, who has come, and who is lost."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.base.seal import Seal
from flopsfit_ds.engine.nodes.control.mailbox import JOIN_PATIENCE_SECONDS, SILENCE_SECONDS, Farewell, Hello, Mailbox
from flopsfit_ds.engine.signals import Signals, SweepStoppedError
from flopsfit_ds.engine.slots import NodeSlots
from flopsfit_ds.train.order import WorkerOrder

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
_log = logging.getLogger(__name__)
GATHER_SECONDS = 120.0
"""For all nodes to be there before the first run starts: they load in less. Later ones are taken in. Chosen."""
_LOST_FACTOR = 1.25
"""Of the silence after which a node gives its driver up and ends its workers: others go on with its runs only then."""
_LEAVE_SECONDS = 5.0
"""For the other nodes to read that the sweep is over, before the store goes with this process."""
_KEYLESS_SECONDS = 20.0
"""A node of which only messages without this sweep's key have come for so long has another folder."""


class RemoteNode:
    """Another node's workers, as the driver sees them.

    Attributes:
        number: Of the node.
        session: Its own name for this stay.
        orders: What it is told.
        slots: What it offers; None until it has loaded.
    """

    def __init__(self, number: int, session: str, store: Store, seal: Seal, signals: Signals) -> None:
        """Talk to a node that has said hello.

        Args:
            number: Of the node.
            session: What it called itself.
            store: Shared with it.
            seal: Of the sweep.
            signals: Told what the node was sent.
        """
        self.number = number
        self.session = session
        self.orders = Mailbox(store, f"orders/{number}/{session}", seal)
        self.slots: NodeSlots | None = None
        self._reports = Mailbox(store, f"reports/{number}/{session}", seal)
        self._signals = signals
        self._dismissed = False
        self._gone = False
        self._stopped: dict[str, list[int]] = {}

    @property
    def name(self) -> str:
        """For people."""
        return f"node {self.number}" + ("" if self.slots is None else f" ({self.slots.hostname})")

    @property
    def is_lost(self) -> bool:
        """Whether it has not been heard for so long that it has given up its driver before."""
        return self._reports.silent_seconds() > _LOST_FACTOR * SILENCE_SECONDS

    def read_offer(self) -> bool:
        """Whether the node now offers slots that were not known.

        Raises:
            LaunchError: It cannot take part.
        """
        if self.slots is not None or (message := self._reports.receive()) is None:
            return False
        if "error" in message:
            self._gone = True
            raise LaunchError(f"node {self.number}: {message['error']}")
        slots = message["slots"]
        self.slots = NodeSlots(**{**slots, "devices": tuple(slots["devices"])})
        return True

    def send_away(self) -> None:
        """Tell it, should it be there after all, that it is out, and may come again."""
        self.orders.send({"do": "join_again"})

    def start(self, run_id: str, orders: list[WorkerOrder], slots: list[int]) -> None:
        """See `Node`."""
        self.orders.send({"do": "start", "run_id": run_id, "orders": [asdict(o) for o in orders], "slots": slots})

    def reap(self) -> dict[str, dict[int, int]]:
        """See `Node`.

        Raises:
            LaunchError: The node cannot start workers.
        """
        exits: dict[str, dict[int, int]] = {}
        while (message := self._reports.receive()) is not None:
            if "error" in message:
                raise LaunchError(f"{self.name}: {message['error']}")
            if "signal" in message:
                self._signals.note(message["signal"])
            self._stopped |= message.get("stopped", {})
            for run_id, codes in message.get("exits", {}).items():
                exits.setdefault(run_id, {}).update({int(rank): code for rank, code in codes.items()})
        return exits

    def signal(self, run_id: str, number: int) -> None:
        """See `Node`."""
        self.orders.send({"do": "signal", "run_id": run_id, "number": int(number)})

    def stopped_ranks(self, run_id: str) -> list[int]:
        """See `Node`; known only once the workers have been asked for their stacks."""
        return self._stopped.get(run_id, [])

    def forget(self, run_id: str) -> None:
        """See `Node`."""
        self.orders.send({"do": "forget", "run_id": run_id})

    def end_all(self) -> None:
        """See `Node`."""
        self.orders.send({"do": "end"})

    def leave(self, exit_code: int) -> bool:
        """Let the node go; False where it was before."""
        if self._dismissed:
            return False
        self._dismissed = True
        self.orders.send({"do": "leave", "exit_code": exit_code})
        return True

    def has_left(self) -> bool:
        """Whether the node has heard of it."""
        while not self._gone and (message := self._reports.receive()) is not None:
            self._gone = "left" in message
        return self._gone


@dataclass(frozen=True)
class Changes:
    """What has changed among the nodes.

    Attributes:
        lost: Those that were there and are not any more.
        came: Those that offer slots from now on; a node that was lost may be among them.
        refused: Why those cannot take part that came and do not.
    """

    lost: tuple[RemoteNode, ...]
    came: tuple[RemoteNode, ...]
    refused: tuple[str, ...]


class Roster:
    """The nodes beside the driver's own.

    A node says hello by a name that is new each time that it comes. So one that is started again, or that comes back
    from a silence, is a new one, and the messages of its former stay are not taken for its own.

    Attributes:
        num_nodes: Of the launch, the driver's own among them.
    """

    def __init__(self, num_nodes: int, store: Store, seal: Seal, signals: Signals) -> None:
        """Wait for nodes.

        Args:
            num_nodes: Of the launch.
            store: Shared with them.
            seal: Of the sweep.
            signals: End the wait for them, and are told what they were sent.
        """
        self.num_nodes = num_nodes
        self._store, self._seal, self._signals = store, seal, signals
        self._hellos = {number: Hello(store, seal, number) for number in range(1, num_nodes)}
        self._farewell = Farewell(store, seal)
        self._nodes: dict[int, RemoteNode] = {}
        self._over: set[str] = set()

    @property
    def nodes(self) -> tuple[RemoteNode, ...]:
        """Those that have said hello and are not lost."""
        return tuple(self._nodes.values())

    def orders(self) -> list[Mailbox]:
        """By which they are told what to do."""
        return [node.orders for node in self.nodes]

    def look(self) -> Changes:
        """What has changed since the last look."""
        lost, came, refused = [], [], []
        for number, hello in self._hellos.items():
            session, node = hello.heard(), self._nodes.get(number)
            if node is not None and (node.is_lost or session not in (None, node.session)):
                node.send_away()
                self._let_go(node)
                lost += [node] if node.slots is not None else []
                node = None
            if node is None and session is not None and session not in self._over:
                node = self._nodes[number] = RemoteNode(number, session, self._store, self._seal, self._signals)
            try:
                came += [node] if node is not None and node.read_offer() else []
            except LaunchError as error:
                assert node is not None
                self._let_go(node)
                refused.append(str(error))
        return Changes(tuple(lost), tuple(came), tuple(refused))

    def _let_go(self, node: RemoteNode) -> None:
        self._over.add(node.session)
        del self._nodes[node.number]

    def dismiss(self, exit_code: int) -> None:
        """Let nodes go, and give them a moment to hear of it; those that were told before have had theirs."""
        self._farewell.say(exit_code)
        told = [node for node in self.nodes if node.leave(exit_code)]
        deadline = time.monotonic() + _LEAVE_SECONDS
        while time.monotonic() < deadline and not all([node.has_left() for node in told]):
            time.sleep(0.02)

    def gather(self) -> tuple[RemoteNode, ...]:
        """All nodes, once they offer slots; without those that take too long.

        Raises:
            LaunchError: One cannot take part.
            SweepStoppedError: A signal came first.
        """
        began = time.monotonic()
        while missing := [n for n in self._hellos if n not in self._nodes or self._nodes[n].slots is None]:
            received = self._signals.received
            if received is not None:
                raise SweepStoppedError(
                    f"{received.name}: stopped before node {missing[0]} had joined; the same command goes on from here",
                    self._signals.exit_code,
                )
            if refused := self.look().refused:
                raise LaunchError(refused[0])
            now = time.monotonic()
            for number in missing:
                foreign = self._hellos[number].foreign_since
                if foreign is not None and now - foreign > _KEYLESS_SECONDS:
                    raise LaunchError(f"node {number} writes without this sweep's key; share output_root between nodes")
            if now - began > min(GATHER_SECONDS, JOIN_PATIENCE_SECONDS):
                _log.warning(
                    "node %s has not joined within %.0f s; was it launched? The sweep begins without it, and takes it "
                    "in when it comes", " and node ".join(map(str, missing)), now - began,
                )  # fmt: skip
                break
            time.sleep(0.05)
        return tuple(node for node in self.nodes if node.slots is not None)

"""How the driver talks to the other nodes of a launch: orders and reports in the launcher's own store.

Whoever reaches the store's port can write into it. So each message carries a digest under the sweep's key, its sender
leaves it again until it has been read, and what does not verify is dropped: it costs a line of the log.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flopsfit_ds.base.errors import FlopsfitError, LaunchError, RecordError
from flopsfit_ds.base.seal import Seal, sweep_seal
from flopsfit_ds.base.storage import read_json, write_json
from flopsfit_ds.engine.nodes.launch import LaunchedRank
from flopsfit_ds.engine.nodes.stores import host_store, is_loopback
from flopsfit_ds.engine.signals import Signals, SweepStoppedError
from flopsfit_ds.engine.slots import NodeSlots
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.train.order import WorkerOrder

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
_log = logging.getLogger(__name__)
JOIN_PATIENCE_SECONDS = 600.0
"""For all nodes to have loaded, from when the first one asks, and for the first to have settled and checked a plan."""
SILENCE_SECONDS = 60.0
"""A node, or the driver, that was heard and then not for so long is lost."""
_BEAT_SECONDS = 1.0
"""Between two signs of life: sixty must be missed before a node is lost."""
_GAP_SECONDS = 10.0
"""Between two looks of a process that was not suspended: never."""
_LEAVE_SECONDS = 5.0
"""For the other nodes to read that the sweep is over, before the store goes with this process."""
_KEYLESS_SECONDS = 20.0
"""A node of which only messages without this sweep's key have come for so long has another folder."""
_num_sweeps = 0


class Control(NamedTuple):
    """What the nodes of a launch share.

    Attributes:
        store: Orders and reports.
        seal: Of the sweep, under which they are written.
        host: Where it is.
        others: The other nodes, on the driver's side; none on theirs.
    """

    store: Store
    seal: Seal
    host: str
    others: tuple[RemoteNode, ...]


def _control(place: LaunchedRank, store: Store, seal: Seal, host: str) -> Control:
    others = tuple(RemoteNode(number, store, seal) for number in range(1, place.num_nodes)) if place.node == 0 else ()
    return Control(store, seal, host, others)


def open_control_store(place: LaunchedRank, folder: SweepFolder, environment: Mapping[str, str]) -> Control:
    """The store that all nodes share.

    It is the launcher's where it runs one, else hosted by rank 0: where the launcher says, or under plain `srun` on a
    free port that the other nodes find in the sweep's folder. Every rank that works calls this once a sweep.

    Raises:
        LaunchError: It cannot be opened.
        SweepFolderError: The sweep's folder, or its key, cannot be made or read.
    """
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    global _num_sweeps
    _num_sweeps += 1
    folder.prepare()
    seal = sweep_seal(folder.path)
    if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        return meet(place, folder.path / "slurm" / f"{_step_name(environment)}.{_num_sweeps}.json", seal)
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    is_host = place.rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    patience = timedelta(seconds=JOIN_PATIENCE_SECONDS)
    try:
        if is_host:
            store = host_store(patience, only_here=is_loopback(host), port=port)
        else:
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience)
    except RuntimeError as error:
        remedy = "give the launcher another --master_port" if is_host else "does the node's network reach it?"
        raise LaunchError(f"{host}:{port}: {str(error).splitlines()[0]}; {remedy}") from None
    return _control(place, PrefixStore(f"flopsfit-ds/{_num_sweeps}", store), seal, host)


def _step_name(environment: Mapping[str, str]) -> str:
    """What no other step of the cluster, and no earlier life of a requeued job, is called.

    Raises:
        LaunchError: This is no job step of SLURM.
    """
    if "SLURM_JOB_ID" not in environment:
        raise LaunchError("several nodes, and no MASTER_ADDR and MASTER_PORT: the launcher must set both")
    return ".".join(environment.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))


def meet(place: LaunchedRank, path: Path, seal: Seal) -> Control:
    """A store that nodes share: hosted by the first on a free port, found through a file in the sweep's folder.

    Args:
        place: This process in the launch.
        path: The file.
        seal: Of the sweep.

    Raises:
        LaunchError: The first node has not shown up.
        SweepFolderError: The file cannot be written.
    """
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    patience = timedelta(seconds=JOIN_PATIENCE_SECONDS)
    if place.node == 0:
        store = host_store(patience, only_here=False)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"host": socket.gethostname(), "port": store.port})
        return _control(place, store, seal, socket.gethostname())
    deadline = time.monotonic() + JOIN_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            address = read_json(path)
        except (FileNotFoundError, RecordError):
            time.sleep(0.5)
            continue
        store = TCPStore(address["host"], address["port"], is_master=False, timeout=patience)
        return _control(place, store, seal, address["host"])
    raise LaunchError(f"{path} has not appeared; the sweep's folder must be shared by all nodes")


class Mailbox:
    """Messages in one direction between the driver and one node, in order, and a sign of life.

    One end sends and beats, the other receives and listens; what is not sealed under this mailbox's name is nobody's.
    """

    def __init__(self, store: Store, name: str, seal: Seal) -> None:
        self._store = store
        self._name = name
        self._seal = seal
        self._lock = threading.Lock()
        self._unread: dict[int, str] = {}
        self._next = 0
        self._beats = 0
        self._last_look = 0.0
        self._heard = time.monotonic()
        self.foreign_since: float | None = None

    def _key(self, what: object) -> str:
        return f"{self._name}/{what}"

    def send(self, message: dict[str, Any]) -> None:
        """Leave a message; see `beat`."""
        key = self._key(self._next)
        data = self._seal.wrap(key, message)
        with self._lock:
            self._unread[self._next] = data
        self._store.set(key, data)
        self._next += 1

    def beat(self) -> None:
        """Show that the sender lives, and leave again what has not been read: it may have been written over."""
        self._beats += 1
        self._store.set(self._key("beat"), self._seal.wrap(self._key("beat"), {"number": self._beats}))
        num_read = self._number("read")
        with self._lock:
            self._unread = {number: data for number, data in self._unread.items() if number >= num_read}
            unread = dict(self._unread)
        for number, data in unread.items():
            self._store.set(self._key(number), data)

    def _take(self, what: object) -> dict[str, Any] | None:
        """What is sealed under a key; None where there is nothing. What is not sealed is dropped, and said once."""
        key = self._key(what)
        if not self._store.check([key]):
            return None
        message = self._seal.unwrap(key, self._store.get(key))
        if message is None:
            self._store.delete_key(key)
            if self.foreign_since is None:
                self.foreign_since = time.monotonic()
                _log.warning("%s: dropped a message that was not written with this sweep's key", key)
        return message

    def _number(self, what: str) -> int:
        message = self._take(what)
        return 0 if message is None else message["number"]

    def receive(self) -> dict[str, Any] | None:
        """The next message; None where there is none yet."""
        message = self._take(self._next)
        if message is not None:
            self._store.delete_key(self._key(self._next))
            self._next += 1
            self._store.set(self._key("read"), self._seal.wrap(self._key("read"), {"number": self._next}))
        return message

    def silent_seconds(self) -> float:
        """How long the sender has shown no sign of life."""
        now = time.monotonic()
        if now - self._last_look > _BEAT_SECONDS:
            if self._last_look and now - self._last_look > _GAP_SECONDS:
                self._heard += now - self._last_look  # this process stood still, and could not hear
            self._last_look = now
            beats = self._number("beat")
            if beats > self._beats:
                self._beats, self._heard = beats, now
        return now - self._heard

    @property
    def was_heard(self) -> bool:
        """Whether the sender has ever shown a sign of life; see `silent_seconds`."""
        return self._beats > 0


@contextmanager
def beating(mailboxes: Sequence[Mailbox]) -> Iterator[None]:
    """Meanwhile, show whoever reads the mailboxes that this process lives, whatever its main thread is busy with."""
    stop = threading.Event()

    def beat() -> None:
        with suppress(RuntimeError):  # torch's error of a store that is gone: the main thread meets it, too
            while not stop.is_set():
                for mailbox in mailboxes:
                    mailbox.beat()
                stop.wait(_BEAT_SECONDS)

    thread = threading.Thread(target=beat, name="flopsfit-ds signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def leading(control: Control | None) -> Iterator[None]:
    """Meanwhile, show the other nodes of a launch that their driver lives; let them go if it fails."""
    if control is None:
        yield
        return
    with beating([node.orders for node in control.others]):
        try:
            yield
        except BaseException as error:
            with suppress(RuntimeError):  # the store is gone, and the nodes have seen that
                dismiss(control.others, error.exit_code if isinstance(error, FlopsfitError) else 1)
            raise


def dismiss(nodes: Sequence[RemoteNode], exit_code: int) -> None:
    """Let nodes go, and give them a moment to hear of it; those that were told before have had theirs."""
    told = [node for node in nodes if node.leave(exit_code)]
    deadline = time.monotonic() + _LEAVE_SECONDS
    while time.monotonic() < deadline and not all([node.has_left() for node in told]):
        time.sleep(0.02)


class RemoteNode:
    """Another node's workers, as the driver sees them.

    Attributes:
        number: Of the node.
        orders: What it is told.
    """

    def __init__(self, number: int, store: Store, seal: Seal) -> None:
        self.number = number
        self.orders = Mailbox(store, f"orders/{number}", seal)
        self._reports = Mailbox(store, f"reports/{number}", seal)
        self._signals: Signals | None = None
        self._dismissed = False
        self._gone = False
        self._stopped: dict[str, list[int]] = {}
        self._hostname = f"node {number}"

    def wait_for_slots(self, signals: Signals) -> NodeSlots:
        """What the node offers, once it has loaded.

        Args:
            signals: End the wait, and are told from now on what the node was sent.

        Raises:
            LaunchError: It does not answer, or cannot take part.
            SweepStoppedError: A signal came first.
        """
        self._signals = signals
        deadline = time.monotonic() + JOIN_PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if signals.received is not None:
                raise SweepStoppedError(
                    f"{signals.received.name}: stopped before node {self.number} had joined; "
                    "the same command goes on from here",
                    signals.exit_code,
                )
            message = self._reports.receive()
            if message is None:
                foreign = self._reports.foreign_since
                if foreign is not None and time.monotonic() - foreign > _KEYLESS_SECONDS:
                    raise LaunchError(
                        f"node {self.number} writes without this sweep's key; share output_root between nodes"
                    )
                time.sleep(0.05)
                continue
            if "error" in message:
                self._gone = True
                raise LaunchError(f"node {self.number}: {message['error']}")
            slots = message["slots"]
            self._hostname = slots["hostname"]
            return NodeSlots(**{**slots, "devices": tuple(slots["devices"])})
        raise LaunchError(f"node {self.number} has not joined within {JOIN_PATIENCE_SECONDS:.0f} s; was it launched?")

    def start(self, run_id: str, orders: list[WorkerOrder], slots: list[int]) -> None:
        """See `Node`."""
        self.orders.send({"do": "start", "run_id": run_id, "orders": [asdict(o) for o in orders], "slots": slots})

    def reap(self) -> dict[str, dict[int, int]]:
        """See `Node`.

        Raises:
            LaunchError: The node is lost, or cannot start workers.
        """
        if self._reports.silent_seconds() > SILENCE_SECONDS:
            raise LaunchError(
                f"{self._hostname} has not been heard for {SILENCE_SECONDS:.0f} s; launched again, the sweep goes on "
                "from its checkpoints"
            )
        exits: dict[str, dict[int, int]] = {}
        while (message := self._reports.receive()) is not None:
            if "error" in message:
                raise LaunchError(f"{self._hostname}: {message['error']}")
            if "signal" in message:
                assert self._signals is not None
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

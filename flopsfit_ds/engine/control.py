"""How the driver talks to the other nodes of a launch: orders and reports as JSON in the launcher's own store."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopsfit_ds.engine.launch import LaunchedRank
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slots import NodeSlots
from flopsfit_ds.errors import LaunchError, RecordError
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.storage import read_json, write_json
from flopsfit_ds.train.order import WorkerOrder

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

JOIN_PATIENCE_SECONDS = 600.0
"""For all nodes to have loaded, from when the first one asks, and for the first to have settled and checked a plan."""
SILENCE_SECONDS = 60.0
"""A node, or the driver, that has not been heard for so long is lost."""
_BEAT_SECONDS = 1.0
_num_sweeps = 0


def open_control_store(place: LaunchedRank, folder: SweepFolder, environment: Mapping[str, str]) -> tuple[Store, str]:
    """The store that all nodes share, and the host that it is on.

    It is the launcher's where it runs one, else hosted by rank 0: where the launcher says, or under plain `srun` on a
    free port that the other nodes find in the sweep's folder. Every rank that works calls this once a sweep.

    Raises:
        LaunchError: It cannot be opened.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    global _num_sweeps
    _num_sweeps += 1
    if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        return meet(place, folder.path / "slurm" / f"{_step_name(environment)}.{_num_sweeps}.json")
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    is_host = place.rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    patience = timedelta(seconds=JOIN_PATIENCE_SECONDS)
    try:
        store = TCPStore(host, port, is_master=is_host, wait_for_workers=False, timeout=patience)
    except RuntimeError as error:
        remedy = "give the launcher another --master_port" if is_host else "does the node's network reach it?"
        raise LaunchError(f"{host}:{port}: {str(error).splitlines()[0]}; {remedy}") from None
    return PrefixStore(f"flopsfit-ds/{_num_sweeps}", store), host


def _step_name(environment: Mapping[str, str]) -> str:
    """What no other step of the cluster, and no earlier life of a requeued job, is called.

    Raises:
        LaunchError: This is no job step of SLURM.
    """
    if "SLURM_JOB_ID" not in environment:
        raise LaunchError("several nodes, and no MASTER_ADDR and MASTER_PORT: the launcher must set both")
    return ".".join(environment.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))


def meet(place: LaunchedRank, path: Path) -> tuple[Store, str]:
    """A store that nodes share: hosted by the first on a free port, found through a file in the sweep's folder.

    Raises:
        LaunchError: The first node has not shown up.
        SweepFolderError: The file cannot be written.
    """
    from torch._C._distributed_c10d import TCPStore

    patience = timedelta(seconds=JOIN_PATIENCE_SECONDS)
    if place.node == 0:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=patience)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"host": socket.gethostname(), "port": store.port})
        return store, socket.gethostname()
    deadline = time.monotonic() + JOIN_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            address = read_json(path)
        except (FileNotFoundError, RecordError):
            time.sleep(0.5)
            continue
        return TCPStore(address["host"], address["port"], is_master=False, timeout=patience), address["host"]
    raise LaunchError(f"{path} has not appeared; the sweep's folder must be shared by all nodes")


class Mailbox:
    """Messages in one direction between the driver and one node, in order, and a sign of life."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._next = 0
        self._beats = 0
        self._last_beat = 0.0
        self._heard = time.monotonic()

    def send(self, message: dict[str, Any]) -> None:
        """Leave a message."""
        self._store.set(f"{self._name}/{self._next}", json.dumps(message))
        self._next += 1

    def beat(self) -> None:
        """Show that the sender lives; now and then."""
        if time.monotonic() - self._last_beat > _BEAT_SECONDS:
            self._beats += 1
            self._last_beat = time.monotonic()
            self._store.set(f"{self._name}/beat", str(self._beats))

    def receive(self) -> dict[str, Any] | None:
        """The next message; None where there is none yet."""
        key = f"{self._name}/{self._next}"
        if not self._store.check([key]):
            return None
        self._next += 1
        message = json.loads(self._store.get(key))
        self._store.delete_key(key)
        return message

    def silent_seconds(self) -> float:
        """How long the sender has shown no sign of life."""
        now = time.monotonic()
        if now - self._last_beat > _BEAT_SECONDS:
            self._last_beat = now
            key = f"{self._name}/beat"
            beats = int(self._store.get(key)) if self._store.check([key]) else 0
            if beats != self._beats:
                self._beats, self._heard = beats, now
        return now - self._heard


class RemoteNode:
    """Another node's workers, as the driver sees them."""

    def __init__(self, number: int, store: Store, signals: Signals) -> None:
        self.number = number
        self._orders = Mailbox(store, f"orders/{number}")
        self._reports = Mailbox(store, f"reports/{number}")
        self._signals = signals
        self._stopped: dict[str, list[int]] = {}
        self._hostname = f"node {number}"

    def wait_for_slots(self) -> NodeSlots:
        """What the node offers, once it has loaded.

        Raises:
            LaunchError: It does not answer, or cannot take part.
        """
        deadline = time.monotonic() + JOIN_PATIENCE_SECONDS
        while time.monotonic() < deadline and not self._signals.stops:
            message = self._reports.receive()
            if message is None:
                self._orders.beat()
                time.sleep(0.05)
                continue
            if "error" in message:
                raise LaunchError(f"node {self.number}: {message['error']}")
            slots = message["slots"]
            self._hostname = slots["hostname"]
            return NodeSlots(**{**slots, "devices": tuple(slots["devices"])})
        raise LaunchError(f"node {self.number} has not joined within {JOIN_PATIENCE_SECONDS:.0f} s; was it launched?")

    def start(self, run_id: str, orders: list[WorkerOrder], slots: list[int]) -> None:
        """See `Node`."""
        self._orders.send({"do": "start", "run_id": run_id, "orders": [asdict(o) for o in orders], "slots": slots})

    def reap(self) -> dict[str, dict[int, int]]:
        """See `Node`.

        Raises:
            LaunchError: The node is lost, or cannot start workers.
        """
        self._orders.beat()
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
                self._signals.note(message["signal"])
            self._stopped |= message.get("stopped", {})
            for run_id, codes in message.get("exits", {}).items():
                exits.setdefault(run_id, {}).update({int(rank): code for rank, code in codes.items()})
        return exits

    def signal(self, run_id: str, number: int) -> None:
        """See `Node`."""
        self._orders.send({"do": "signal", "run_id": run_id, "number": int(number)})

    def stopped_ranks(self, run_id: str) -> list[int]:
        """See `Node`; known only once the workers have been asked for their stacks."""
        return self._stopped.get(run_id, [])

    def forget(self, run_id: str) -> None:
        """See `Node`."""
        self._orders.send({"do": "forget", "run_id": run_id})

    def end_all(self) -> None:
        """See `Node`."""
        self._orders.send({"do": "end"})

    def leave(self, exit_code: int) -> None:
        """Let the node go, and give it a moment to hear of it."""
        self._orders.send({"do": "leave", "exit_code": exit_code})
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            message = self._reports.receive()
            if message is not None and "left" in message:
                return
            time.sleep(0.02)

"""Messages between the driver and one node, in a store that others may reach.

Whoever reaches the store's port can write into it. So each message carries a digest under the sweep's key, its sender
leaves it again until it has been read, and what does not verify is dropped: it costs a line of the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from flopsfit_ds.base.seal import Seal

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
_log = logging.getLogger(__name__)
JOIN_PATIENCE_SECONDS = 600.0
"""For all nodes to have loaded, from when the first one asks, and for the first to have settled and checked a plan."""
SILENCE_SECONDS = 60.0
"""A driver that was heard and then not for so long is lost; a node somewhat later, see `roster`."""
_BEAT_SECONDS = 1.0
"""Between two signs of life: sixty must be missed before a node is lost."""
_GAP_SECONDS = 10.0
"""Between two looks of a process that was not suspended: never."""


class Sealed:
    """Keys of a store under one name, whose values are written and believed only with the sweep's seal.

    Attributes:
        foreign_since: When something was found that was not sealed; None where nothing was.
    """

    def __init__(self, store: Store, name: str, seal: Seal) -> None:
        self._store = store
        self._name = name
        self._seal = seal
        self.foreign_since: float | None = None

    def _key(self, what: object) -> str:
        return f"{self._name}/{what}"

    def _leave(self, what: object, message: dict[str, Any]) -> None:
        key = self._key(what)
        self._store.set(key, self._seal.wrap(key, message))

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


class Hello(Sealed):
    """By what name of its own a node can be reached: another each time that it comes."""

    def __init__(self, store: Store, seal: Seal, node: int, session: str | None = None) -> None:
        """Of a node.

        Args:
            store: Shared with the driver.
            seal: Of the sweep.
            node: Its number.
            session: Its name, on its own side.
        """
        super().__init__(store, f"hello/{node}", seal)
        self._session = session

    def beat(self) -> None:
        """Leave the name, again and again: it may have been written over."""
        self._leave("session", {"session": self._session})

    def heard(self) -> str | None:
        """The name that the node left last."""
        message = self._take("session")
        return None if message is None else str(message["session"])


class Farewell(Sealed):
    """That the sweep is over, for nodes that the driver has not met."""

    def __init__(self, store: Store, seal: Seal) -> None:
        super().__init__(store, "farewell", seal)

    def say(self, exit_code: int) -> None:
        """Leave the sweep's exit code."""
        self._leave("exit_code", {"exit_code": exit_code})

    def heard(self) -> int | None:
        """The sweep's exit code; None while it is not over."""
        message = self._take("exit_code")
        return None if message is None else int(message["exit_code"])


class Mailbox(Sealed):
    """Messages in one direction between the driver and one node, in order, and a sign of life.

    One end sends and beats, the other receives and listens; what is not sealed under this mailbox's name is nobody's.
    """

    def __init__(self, store: Store, name: str, seal: Seal) -> None:
        super().__init__(store, name, seal)
        self._lock = threading.Lock()
        self._unread: dict[int, str] = {}
        self._next = 0
        self._beats = 0
        self._last_look = 0.0
        self._heard = time.monotonic()

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
        self._leave("beat", {"number": self._beats})
        num_read = self._number("read")
        with self._lock:
            self._unread = {number: data for number, data in self._unread.items() if number >= num_read}
            unread = dict(self._unread)
        for number, data in unread.items():
            self._store.set(self._key(number), data)

    def _number(self, what: str) -> int:
        message = self._take(what)
        return 0 if message is None else message["number"]

    def receive(self) -> dict[str, Any] | None:
        """The next message; None where there is none yet."""
        message = self._take(self._next)
        if message is not None:
            self._store.delete_key(self._key(self._next))
            self._next += 1
            self._leave("read", {"number": self._next})
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
def beating(ends: Callable[[], Sequence[Mailbox | Hello]]) -> Iterator[None]:
    """Meanwhile, show whoever reads at the other ends that this process lives, whatever its main thread is busy with.

    Args:
        ends: This process's ends, as they are at the moment.
    """
    stop = threading.Event()

    def beat() -> None:
        with suppress(RuntimeError):  # torch's error of a store that is gone: the main thread meets it, too
            while not stop.is_set():
                for end in ends():
                    end.beat()
                stop.wait(_BEAT_SECONDS)

    thread = threading.Thread(target=beat, name="flopsfit-ds signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

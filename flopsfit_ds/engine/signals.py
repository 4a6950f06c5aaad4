"""Signals that stop a sweep: Ctrl-C, and what a cluster sends before it takes the machine away."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType

from flopsfit_ds.base.errors import FlopsfitError

EXIT_REQUEUE = 75
"""EX_TEMPFAIL of sysexits.h: the same command, started again, goes on."""
EXIT_CTRL_C = 130  # 128 + SIGINT, as shells count
_PREEMPTION = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_HANG_UP = signal.SIGHUP
"""The terminal was closed, or the connection to it is lost."""
_ONE_PRESS_SECONDS = 2.0
"""One Ctrl-C reaches a launched process more than once: from the terminal, and from a launcher that passes it on."""


class SweepStoppedError(FlopsfitError):
    """A signal stopped the sweep; started again, it goes on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Signals:
    """While entered, notes signals instead of dying of them; a `wait` on it ends when one arrives.

    Attributes:
        received: The first signal; None so far.
        asks_for_requeue: SIGUSR1 or SIGUSR2 came: the cluster wants the machine back, and will give another.
        insisted: Ctrl-C was pressed again, a while after the first signal: end now, without checkpoints.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.asks_for_requeue = False
        self.insisted = False
        self._received_at = 0.0
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._previous: dict[int, signal._HANDLER] = {}

    def fileno(self) -> int:
        """Readable when a signal has arrived."""
        return self._read_end

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python takes handlers nowhere else
            for number in (signal.SIGINT, *_PREEMPTION):
                self._previous[number] = signal.signal(number, self._handle)
            if signal.getsignal(_HANG_UP) is not signal.SIG_IGN:  # as `nohup` leaves it
                self._previous[_HANG_UP] = signal.signal(_HANG_UP, self._handle)
        return self

    def take_back(self) -> None:
        """Handle signals again after a library has taken them: Ray does, in whatever process it connects."""
        for number in self._previous:
            signal.signal(number, self._handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._read_end)
        os.close(self._write_end)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stops and number == signal.SIGINT and time.monotonic() - self._received_at > _ONE_PRESS_SECONDS:
            self.insisted = True
        self.note(number)

    def note(self, number: int) -> None:
        """Stop as if this process had got a signal that another rank or node was sent; that never insists."""
        self.asks_for_requeue |= number in (signal.SIGUSR1, signal.SIGUSR2)
        if self.received is None:
            self._received_at = time.monotonic()
            self.received = signal.Signals(number)
        with suppress(BlockingIOError):
            os.write(self._write_end, b"!")

    def wait(self, timeout_seconds: float) -> None:
        """Let time pass, until a signal arrives at the latest."""
        select.select([self], [], [], timeout_seconds)
        self.clear_wakeup()

    def clear_wakeup(self) -> None:
        """Take note of all arrivals so far, so that the next wait is a wait again."""
        with suppress(BlockingIOError):
            os.read(self._read_end, 4096)

    @property
    def stops(self) -> bool:
        """Whether the sweep should stop."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What the process exits with after a stop."""
        return EXIT_CTRL_C if self.received == signal.SIGINT else EXIT_REQUEUE

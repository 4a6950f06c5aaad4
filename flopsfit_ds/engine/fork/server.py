"""The fork server of a node: started once, loaded while the driver does other things, asked for workers."""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, process
from multiprocessing.process import BaseProcess
from typing import Any

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.base.usercode import CANNOT_BE_PICKLED, main_script, pickled, what_stays
from flopsfit_ds.engine.fork import preload
from flopsfit_ds.engine.fork.child import Launch, probe_main, worker_main
from flopsfit_ds.engine.fork.processes import ProcessIdentity, identify
from flopsfit_ds.engine.signals import Signals

_log = logging.getLogger(__name__)
TRAINING_MODULES = (
    "torch",
    "torch._dynamo",  # Accelerate's first `prepare` would pull it in, for seconds
    "torch.distributed",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "accelerate",
    "transformers.integrations.deepspeed",
    "flopsfit_ds.train.worker",
)
"""What every worker needs, imported once a node."""


@dataclass(frozen=True)
class Program:
    """What workers run.

    Attributes:
        target: `module:function`, called with a `WorkerOrder` and the task; returns the exit code.
        modules: Imported once, by the server that workers are forked from.
    """

    target: str
    modules: tuple[str, ...]


TRAINING = Program("flopsfit_ds.train.worker:run_worker", TRAINING_MODULES)
_LOADING_SECONDS = 300.0
"""To import torch and DeepSpeed from a network file system that others read from too; chosen, not measured."""
LEAST_PATIENCE_SECONDS = 20.0
"""For a loaded server to fork: milliseconds, but on a machine that swaps."""
_SHARE_OF_HANG = 0.1
"""Whoever allows a run to be silent for long has a slow machine; a fork is a tenth of that at most. Chosen."""
_LOOK_SECONDS = 0.2
"""Between two looks at whether a signal has come while a server is asked."""
_STOP_SECONDS = 2.0
"""After a signal, for a fork that is under way."""
_LONGEST_TEMPORARY = 60
"""Characters of TMPDIR that leave room for the names which multiprocessing adds."""
_TRIES = 5
"""With their pauses 1.5 s."""
_PAUSE_SECONDS = 0.3
"""Between two tries: a server that was killed may already refuse connections and not yet be seen to have ended."""


@dataclass(frozen=True)
class Worker:
    """One forked worker.

    Attributes:
        rank: In its attempt.
        process: Its handle.
        identity: Its pid and start time.
    """

    rank: int
    process: BaseProcess
    identity: ProcessIdentity

    @property
    def exit_code(self) -> int | None:
        """Exit code, the negated signal for one that was killed, None while it runs."""
        return self.process.exitcode


class ForkAbandonedError(Exception):
    """A signal asked for an end while the server did not answer; it and its workers were left alone."""


class ForkServer:
    """Forks workers that have everything imported; never initialises CUDA.

    Attributes:
        patience_seconds: Silence of a loaded server after which it is ended.
    """

    def __init__(
        self, target: str, modules: tuple[str, ...], signals: Signals | None = None, hang_timeout_seconds: float = 600.0
    ) -> None:
        """Start the server; it loads in the background.

        Args:
            target: `module:function` that a worker runs.
            modules: What to import in the server.
            signals: End the wait for a server that does not answer.
            hang_timeout_seconds: A tenth of it, and 20 s at least, a loaded server may take to fork.
        """
        self._target = target
        self._signals = signals
        self.patience_seconds = max(LEAST_PATIENCE_SECONDS, _SHARE_OF_HANG * hang_timeout_seconds)
        self._loaded_pid: int | None = None
        _keep_socket_paths_short()
        self._context = multiprocessing.get_context("forkserver")
        loaded = [*modules, *(name for name in ("flopsfit_ds.cli.main",) if name in sys.modules)]
        self._settings = {"modules": loaded, "main_path": main_script(), "sys_path": sys.path, "argv": sys.argv}
        self._context.set_forkserver_preload(["flopsfit_ds.engine.fork.in_server"])
        self._ensure_running()

    def _ensure_running(self) -> None:
        os.environ[preload.VARIABLE] = json.dumps({"driver": os.getpid(), **self._settings})
        try:
            forkserver.ensure_running()
        finally:
            del os.environ[preload.VARIABLE]

    def wait_until_ready(self) -> None:
        """Wait until the server has loaded everything, and see that it can fork.

        Raises:
            LaunchError: A module or the user's script cannot be imported, or the script starts a sweep on import.
        """
        receiver, sender = self._context.Pipe(duplex=False)
        probe = self._start(probe_main, sender, "flopsfit-ds probe")
        sender.close()
        try:
            if not receiver.poll(_LOADING_SECONDS):
                raise LaunchError(f"the server that forks workers did not answer for {_LOADING_SECONDS:.0f} s")
            answer = receiver.recv()
        except EOFError:
            raise LaunchError("a forked process ended before it could answer; see the output above") from None
        finally:
            probe.kill()
            probe.join()
            receiver.close()
        if answer["main_error"]:
            raise LaunchError(answer["main_error"])
        if not answer["own_server"]:
            raise LaunchError(
                "this process has started a forkserver of multiprocessing before the sweep, without what workers need; "
                "start the sweep first, or in a process of its own"
            )
        assert not answer["cuda"], "the fork server initialised CUDA"

    def _start(self, target: Callable[[Any], None], argument: Any, name: str) -> BaseProcess:
        """Fork a process; a server that was killed is started again, with its settings, and asked again.

        One that does not answer (stopped, or at the limit of something) is killed, and its workers end with it.

        Raises:
            LaunchError: The server ends each time.
            ForkAbandonedError: A signal came while it did not answer.
        """
        reason: Exception | None = None
        for _ in range(_TRIES):
            forked = self._context.Process(target=target, args=(argument,), name=name)
            try:
                self._ensure_running()
                self._await(forked)
                return forked
            except (OSError, EOFError) as error:
                reason = error
                time.sleep(_PAUSE_SECONDS)
        raise LaunchError(
            f"the server that forks workers ends each time it is started ({reason}); see the output above"
        )

    def _await(self, forked: BaseProcess) -> None:
        """Have a process started, by a thread: the call lasts for as long as the server does not answer.

        Raises:
            OSError: The server has ended, or had to be ended.
            EOFError: As above.
            ForkAbandonedError: A signal came first.
        """
        pid = _server_pid()
        seconds = self.patience_seconds if pid == self._loaded_pid else _LOADING_SECONDS
        pending: Future[None] = Future()

        def start() -> None:
            try:
                forked.start()
                pending.set_result(None)
            except BaseException as error:
                pending.set_exception(error)

        threading.Thread(target=start, name="flopsfit-ds fork", daemon=True).start()
        deadline = time.monotonic() + seconds
        while not wait([pending], _LOOK_SECONDS).done and time.monotonic() < deadline and not self._stops:
            pass
        if self._stops and not wait([pending], _STOP_SECONDS).done:
            raise ForkAbandonedError  # the server is left alone: its workers are to write their checkpoints
        if not pending.done():
            self.end_silent(seconds)
        pending.result()
        self._loaded_pid = pid

    def end_silent(self, seconds: float | None = None) -> None:
        """Kill the server, which has not answered for so long; the next fork starts another."""
        seconds = self.patience_seconds if seconds is None else seconds
        _log.warning("the server that forks workers has not answered for %.0f s: it is ended", seconds)
        with suppress(ProcessLookupError):
            os.kill(_server_pid(), signal.SIGKILL)

    @property
    def _stops(self) -> bool:
        return self._signals is not None and self._signals.stops

    def fork(self, order: Any, task: bytes, visible_devices: str | None) -> Worker:
        """Start one rank.

        Raises:
            LaunchError: The server cannot fork.
        """
        forked = self._start(worker_main, Launch(self._target, order, task, visible_devices), f"rank {order.rank}")
        pid = forked.pid
        assert pid is not None
        try:
            identity = identify(pid)
        except ProcessLookupError:  # ended already: its exit code says how
            identity = ProcessIdentity(pid, -1, "")
        return Worker(order.rank, forked, identity)


def pickle_task(task: Any) -> bytes:
    """A task as it is sent to workers: to each of them.

    The pickler of multiprocessing would send tensors as open files that only one process can take over.

    Raises:
        LaunchError: It holds something that cannot be sent.
    """
    try:
        return pickled(task)
    except CANNOT_BE_PICKLED as error:
        raise LaunchError(f"a run's task cannot be sent to its workers: {what_stays('it', task)} ({error})") from None


def refuse_import_by_worker() -> None:
    """Stop a sweep that starts because a worker imports the user's script."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise preload.UnguardedMainError(
            "the script starts the sweep when it is imported, and every worker imports it; put the call under "
            'if __name__ == "__main__":'
        )


def _server_pid() -> int:
    return forkserver._forkserver._forkserver_pid  # pyright: ignore[reportAttributeAccessIssue]


def _keep_socket_paths_short() -> None:
    """Let multiprocessing put its sockets elsewhere where TMPDIR is too long: a socket's path has 107 characters."""
    if len(tempfile.gettempdir()) <= _LONGEST_TEMPORARY:
        return
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(folder, os.W_OK):
            short = tempfile.mkdtemp(prefix="flopsfit-ds-", dir=folder)
            atexit.register(shutil.rmtree, short, ignore_errors=True)
            process.current_process()._config["tempdir"] = short  # pyright: ignore[reportAttributeAccessIssue]
            return
    raise LaunchError(f"TMPDIR={tempfile.gettempdir()} is too long for a socket's path; set a shorter one")

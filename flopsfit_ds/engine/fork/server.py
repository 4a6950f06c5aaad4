"""The fork server of a node: started once, loaded while the driver does other things, asked for workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver, spawn
from multiprocessing.process import BaseProcess
from typing import Any

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.engine.fork import preload
from flopsfit_ds.engine.fork.child import Launch, probe_main, worker_main
from flopsfit_ds.engine.fork.processes import ProcessIdentity, identify

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
_PROBE_PATIENCE_SECONDS = 300.0
"""To import torch and DeepSpeed from a network file system that others read from too; chosen, not measured."""
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


class ForkServer:
    """Forks workers that have everything imported; never initialises CUDA."""

    def __init__(self, target: str, modules: tuple[str, ...]) -> None:
        """Start the server; it loads in the background.

        Args:
            target: `module:function` that a worker runs.
            modules: What to import in the server.
        """
        self._target = target
        self._context = multiprocessing.get_context("forkserver")
        loaded = [*modules, *(name for name in ("flopsfit_ds.cli.main",) if name in sys.modules)]
        self._settings = {"modules": loaded, "main_path": _main_path(), "sys_path": sys.path, "argv": sys.argv}
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
            if not receiver.poll(_PROBE_PATIENCE_SECONDS):
                raise LaunchError(f"the server that forks workers did not answer for {_PROBE_PATIENCE_SECONDS:.0f} s")
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

        Raises:
            LaunchError: The server ends each time.
        """
        reason: Exception | None = None
        for _ in range(_TRIES):
            process = self._context.Process(target=target, args=(argument,), name=name)
            try:
                self._ensure_running()
                process.start()
                return process
            except (OSError, EOFError) as error:
                reason = error
                time.sleep(_PAUSE_SECONDS)
        raise LaunchError(
            f"the server that forks workers ends each time it is started ({reason}); see the output above"
        )

    def fork(self, order: Any, task: bytes, visible_devices: str | None) -> Worker:
        """Start one rank.

        Raises:
            LaunchError: The server cannot fork.
        """
        process = self._start(worker_main, Launch(self._target, order, task, visible_devices), f"rank {order.rank}")
        pid = process.pid
        assert pid is not None
        try:
            identity = identify(pid)
        except ProcessLookupError:  # ended already: its exit code says how
            identity = ProcessIdentity(pid, -1, "")
        return Worker(order.rank, process, identity)


def pickle_task(task: Any) -> bytes:
    """A task as it is sent to workers: to each of them, and by value.

    The pickler of multiprocessing would send tensors as open files that only one process can take over.

    Raises:
        LaunchError: It holds something that cannot be sent.
    """
    try:
        return pickle.dumps(task)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        if "cloudpickle" in sys.modules:  # inside a job: submitit brought the script's own classes by value
            return sys.modules["cloudpickle"].dumps(task)
        raise LaunchError(
            f"a run's task cannot be sent to its workers: {error}; define model classes, data sets and loss functions "
            "at the top level of a module or script, and keep no open file or lock in them"
        ) from None


def refuse_import_by_worker() -> None:
    """Stop a sweep that starts because a worker imports the user's script."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise preload.UnguardedMainError(
            "the script starts the sweep when it is imported, and every worker imports it; put the call under "
            'if __name__ == "__main__":'
        )


def _main_path() -> str | None:
    return spawn.get_preparation_data("server").get("init_main_from_path")

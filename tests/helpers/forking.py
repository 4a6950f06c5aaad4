"""A process that has everything imported and forks others on request, so that a test pays for its own work alone.

Started by a `ForkingServer`; speaks pickles over stdin and stdout. Apart from the engine's own fork server, so that
what tests start needs no engine.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class ForkingServer:
    """Imports once, and forks functions of modules on request."""

    def __init__(self, modules: Iterable[str], environment: Mapping[str, str] | None = None) -> None:
        """Start it; it loads in the background.

        Args:
            modules: Imported before anything is forked.
            environment: Added to this process's own.
        """
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )

    def start(self, target: str, *arguments: Any) -> int:
        """Fork `module:function`, which exits with what it returns; the pid."""
        return self._ask("start", target, arguments)

    def wait(self, pids: list[int], timeout_seconds: float) -> list[int | None]:
        """Exit codes, negated signals, and None for what still runs after the time."""
        return self._ask("wait", pids, timeout_seconds)

    def _ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)

    def close(self) -> None:
        """End it, and with it whatever asked to die with it."""
        self._process.kill()
        self._process.communicate()


def write_to(log: Path) -> None:
    """Send this process's own output, and that of all that it starts, to the end of a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    # whoever puts others in their place must not close what these were
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _wait_for(pids: list[int], timeout_seconds: float) -> list[int | None]:
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_seconds
    while True:
        for pid in pids:
            if pid not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if len(codes) == len(pids) or time.monotonic() > deadline:
            return [codes.get(pid) for pid in pids]
        time.sleep(0.01)


def _main() -> int:
    """Serve until the other side closes; in a forked process, what its function returns."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is forked need not look through all that was imported
    while True:
        try:
            kind, *arguments = pickle.load(requests)
        except EOFError:
            return 0
        if kind == "start":
            (module, _, name), values = arguments[0].partition(":"), arguments[1]
            result: Any = os.fork()
            if result == 0:
                requests.close()
                answers.close()
                return getattr(importlib.import_module(module), name)(*values)
        else:
            result = _wait_for(*arguments)
        pickle.dump(result, answers)
        answers.flush()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of `helpers`, not that of this script
    sys.exit(_main())

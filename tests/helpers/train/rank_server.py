"""A process that has everything imported and forks rank processes on request: real DeepSpeed in half a second each.

Started by `ranks.RankServer`; speaks pickles over stdin and stdout. Apart from the engine's own server, so that these
tests need no engine.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # started as a script, by itself

from flopsfit_ds.engine.fork.child import Launch, _worker_environment, scrub_environment
from flopsfit_ds.engine.fork.processes import die_with_parent
from flopsfit_ds.engine.fork.server import TRAINING_MODULES


def run_rank(target: str, order: Any, task: bytes) -> None:
    """Become one rank; never returns."""
    die_with_parent()
    log = Path(order.run_folder) / f"attempt-{order.attempt}" / f"log.{order.rank}.txt"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    scrub_environment(os.environ)
    os.environ.update(_worker_environment(Launch(target, order, task, None)))
    code = 99
    try:
        module, _, name = target.partition(":")
        code = getattr(importlib.import_module(module), name)(order, pickle.loads(task))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait_for(pids: list[int], timeout_seconds: float) -> list[int | None]:
    """Exit codes, negated signals, and None for what still runs after the time."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_seconds
    while len(codes) < len(pids) and time.monotonic() < deadline:
        for pid in pids:
            if pid not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes.get(pid) for pid in pids]


def main() -> None:
    """Serve until the other side closes."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    for name in TRAINING_MODULES:
        importlib.import_module(name)
    while True:
        try:
            kind, *arguments = pickle.load(requests)
        except EOFError:
            return
        if kind == "start":
            target, orders, task = arguments
            result: Any = []
            for order in orders:
                pid = os.fork()
                if pid == 0:
                    run_rank(target, order, task)
                result.append(pid)
        else:
            result = wait_for(*arguments)
        pickle.dump(result, answers)
        answers.flush()


if __name__ == "__main__":
    main()

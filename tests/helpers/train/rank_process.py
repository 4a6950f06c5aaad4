"""One rank of a training: forked by a `ForkingServer` that has everything imported, half a second a rank."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

from flopsfit_ds.engine.fork.child import Launch, _worker_environment, scrub_environment
from flopsfit_ds.engine.fork.processes import die_with_parent
from helpers.forking import write_to


def run_rank(target: str, order: Any, task: bytes) -> None:
    """Become one rank; never returns."""
    die_with_parent()
    write_to(Path(order.run_folder) / f"attempt-{order.attempt}" / f"log.{order.rank}.txt")
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

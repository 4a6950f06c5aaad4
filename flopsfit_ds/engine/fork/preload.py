"""What the fork server does before it forks: becomes safe, and loads all that its children need.

The server must die with the driver, must outlive signals that are meant for a whole process tree (a launcher ends its
ranks with everything below them; the workers then want to write a checkpoint), and must never initialise CUDA.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import traceback
from multiprocessing import process, spawn

from flopsfit_ds.engine.fork.processes import die_with_parent

VARIABLE = "FLOPSFIT_DS_SERVER"
"""How the driver tells the server what to load: JSON with `driver`, `modules`, `main_path`, `sys_path` and `argv`."""

IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

server_pid = os.getpid()
main_error: str | None = None
"""Why the user's script could not be imported."""


class UnguardedMainError(BaseException):
    """A script that starts a sweep when it is merely imported; no `except Exception` may hide it."""


def _prepare(driver: int, modules: list[str], main_path: str | None, sys_path: list[str], argv: list[str]) -> None:
    os.setsid()
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    if os.getppid() != driver:
        sys.exit("the driver has ended")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    sys.path[:] = sys_path
    sys.argv = argv
    for name in modules:
        importlib.import_module(name)
    if main_path is not None:
        _import_main(main_path)
    gc.collect()
    gc.freeze()  # DeepSpeed collects in each worker, which need not look through all that was imported


def _import_main(path: str) -> None:
    """Import the driver's script once, as multiprocessing would in each child, and remember what goes wrong."""
    global main_error
    current = process.current_process()
    current._inheriting = True  # pyright: ignore[reportAttributeAccessIssue]
    try:
        spawn.import_main_path(path)
    except UnguardedMainError as error:
        main_error = str(error)
    except BaseException:
        main_error = f"{path} cannot be imported by a worker:\n{traceback.format_exc()}"
    finally:
        del current._inheriting  # pyright: ignore[reportAttributeAccessIssue]
    if main_error is not None:
        sys.modules["__main__"].__file__ = path  # the children need not try again: the driver will hear of it


def prepare_from_environment() -> None:
    """Do in the server what the driver asked for."""
    _prepare(**json.loads(os.environ.pop(VARIABLE)))

"""What a forked worker does before, and after, it trains: a session, a log and an environment of its own."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from flopsfit_ds.base.errors import describe_error
from flopsfit_ds.base.storage import write_json
from flopsfit_ds.engine.fork import preload
from flopsfit_ds.engine.fork.processes import die_with_parent, identify
from flopsfit_ds.records import RunFolder
from flopsfit_ds.train.order import EXIT_FAILED, WorkerOrder

_FOREIGN_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "GROUP_", "ROLE_", "CROSS_", "FSDP_", "PMI_", "OMPI_COMM_WORLD_")
_FOREIGN_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """All that a worker is forked with; crosses one pipe.

    Attributes:
        target: `module:function`, called with the order and the task; its result is the exit code.
        order: What this rank is to do.
        task: The pickled task.
        visible_devices: CUDA_VISIBLE_DEVICES of the worker; None on a CPU.
    """

    target: str
    order: WorkerOrder
    task: bytes
    visible_devices: str | None


def scrub_environment(environment: MutableMapping[str, str]) -> None:
    """Remove what a launcher, or a default configuration of Accelerate, left for other processes than this one."""
    for name in list(environment):
        if name in _FOREIGN_NAMES or name.startswith(_FOREIGN_PREFIXES):
            del environment[name]


def worker_main(launch: Launch) -> None:
    """Run one rank of one attempt, and never return."""
    os.setsid()
    die_with_parent()
    if os.getppid() != preload.server_pid:
        os._exit(EXIT_FAILED)  # the server died between the fork and the line above
    # SLURM sends a preemption's signal to every process of a job: it is the driver's to act on, so all that the server
    # ignores stays ignored here, but for SIGTERM, by which the driver asks for a checkpoint
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # locks that libraries make (tqdm one with its first bar) are then without a name: with one, whoever ends as workers
    # do would leave it behind, and the driver's last words be that semaphores leaked
    multiprocessing.set_start_method("fork", force=True)
    os.umask(os.umask(0o077) | 0o022)  # what it writes is loaded again only where nobody else could have written it
    order = launch.order
    folder = RunFolder(Path(order.run_folder)).attempt(order.attempt)
    _redirect_output(folder / f"log.{order.rank}.txt")
    write_json(folder / f"process.{order.rank}.json", identify().to_json_dict(), durable=False)
    scrub_environment(os.environ)
    os.environ.update(_worker_environment(launch))
    code = EXIT_FAILED
    try:
        module, _, name = launch.target.partition(":")
        code = getattr(importlib.import_module(module), name)(order, pickle.loads(launch.task))
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else EXIT_FAILED
    except BaseException as error:
        traceback.print_exc()
        _write_error(folder / f"error.{order.rank}.json", error)
    finally:
        with suppress(OSError, ValueError):  # the disk may be full; the exit code says what counts
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # no atexit hooks: a peer that died would leave them waiting in a collective


def _redirect_output(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _worker_environment(launch: Launch) -> dict[str, str]:
    order = launch.order
    environment = {
        "RANK": str(order.rank),
        "LOCAL_RANK": str(order.local_rank),
        "WORLD_SIZE": str(order.world_size),
        "LOCAL_WORLD_SIZE": str(order.local_world_size),
        "LOCAL_SIZE": str(order.local_world_size),  # else ZeRO-3 on a CPU starts `numactl` for each gradient it reduces
        "MASTER_ADDR": order.store_host,
        "MASTER_PORT": str(order.store_port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is the engine's; every rank is a client of it
        "OMP_NUM_THREADS": str(order.num_threads),
    }
    if launch.visible_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = launch.visible_devices
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the numbers are those of nvidia-smi
    return environment


def _write_error(path: Path, error: BaseException) -> None:
    with suppress(Exception):  # the folder may be the very thing that failed; the log and the exit code remain
        write_json(path, describe_error(error))


def probe_main(connection: Connection) -> None:
    """Tell the driver whether the server could load what it was told to, and whether it touched CUDA."""
    torch = sys.modules.get("torch")
    told = {
        "main_error": preload.main_error,
        "own_server": os.getppid() == preload.server_pid,
        "cuda": torch is not None and torch.cuda.is_initialized(),
    }
    with suppress(BrokenPipeError):  # the driver was stopped meanwhile
        connection.send(told)
    connection.close()

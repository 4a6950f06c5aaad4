"""The store that the nodes of a launch share: the launcher's own, or one that the first node hosts."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flopsfit_ds.base.errors import FlopsfitError, LaunchError, RecordError
from flopsfit_ds.base.seal import Seal, sweep_seal
from flopsfit_ds.base.storage import read_json, write_json
from flopsfit_ds.engine.nodes.control.mailbox import JOIN_PATIENCE_SECONDS, beating
from flopsfit_ds.engine.nodes.control.roster import Roster
from flopsfit_ds.engine.nodes.launch import LaunchedRank
from flopsfit_ds.engine.nodes.stores import host_store, is_loopback
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.records import SweepFolder

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
_num_sweeps = 0


class Control(NamedTuple):
    """What the nodes of a launch share.

    Attributes:
        store: Orders and reports.
        seal: Of the sweep, under which they are written.
        host: Where it is.
        roster: The other nodes, on the driver's side; None on theirs.
    """

    store: Store
    seal: Seal
    host: str
    roster: Roster | None


def _control(place: LaunchedRank, store: Store, seal: Seal, host: str, signals: Signals) -> Control:
    return Control(store, seal, host, Roster(place.num_nodes, store, seal, signals) if place.node == 0 else None)


def open_control_store(
    place: LaunchedRank, folder: SweepFolder, environment: Mapping[str, str], signals: Signals
) -> Control:
    """The store that all nodes share.

    It is the launcher's where it runs one, else hosted by rank 0: where the launcher says, or under plain `srun` on a
    free port that the other nodes find in the sweep's folder. Every rank that works calls this once a sweep.

    Raises:
        LaunchError: It cannot be opened.
        SweepFolderError: The sweep's folder, or its key, cannot be made or read.
    """
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    global _num_sweeps
    _num_sweeps += 1
    folder.prepare()
    seal = sweep_seal(folder.path)
    if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        return meet(place, folder.path / "slurm" / f"{_step_name(environment)}.{_num_sweeps}.json", seal, signals)
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    is_host = place.rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    patience = timedelta(seconds=JOIN_PATIENCE_SECONDS)
    try:
        if is_host:
            store = host_store(patience, only_here=is_loopback(host), port=port)
        else:
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience)
    except RuntimeError as error:
        remedy = "give the launcher another --master_port" if is_host else "does the node's network reach it?"
        raise LaunchError(f"{host}:{port}: {str(error).splitlines()[0]}; {remedy}") from None
    return _control(place, PrefixStore(f"flopsfit-ds/{_num_sweeps}", store), seal, host, signals)


def _step_name(environment: Mapping[str, str]) -> str:
    """What no other step of the cluster, and no earlier life of a requeued job, is called.

    Raises:
        LaunchError: This is no job step of SLURM.
    """
    if "SLURM_JOB_ID" not in environment:
        raise LaunchError("several nodes, and no MASTER_ADDR and MASTER_PORT: the launcher must set both")
    return ".".join(environment.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))


def meet(place: LaunchedRank, path: Path, seal: Seal, signals: Signals) -> Control:
    """A store that nodes share: hosted by the first on a free port, found through a file in the sweep's folder.

    Args:
        place: This process in the launch.
        path: The file.
        seal: Of the sweep.
        signals: End the driver's wait for the others.

    Raises:
        LaunchError: The first node has not shown up.
        SweepFolderError: The file cannot be written.
    """
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    patience = timedelta(seconds=JOIN_PATIENCE_SECONDS)
    if place.node == 0:
        store = host_store(patience, only_here=False)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"host": socket.gethostname(), "port": store.port})
        return _control(place, store, seal, socket.gethostname(), signals)
    deadline = time.monotonic() + JOIN_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            address = read_json(path)
        except (FileNotFoundError, RecordError):
            time.sleep(0.5)
            continue
        store = TCPStore(address["host"], address["port"], is_master=False, timeout=patience)
        return _control(place, store, seal, address["host"], signals)
    raise LaunchError(f"{path} has not appeared; the sweep's folder must be shared by all nodes")


@contextmanager
def leading(control: Control | None) -> Iterator[None]:
    """Meanwhile, show the other nodes of a launch that their driver lives; let them go if it fails."""
    if control is None or control.roster is None:
        yield
        return
    with beating(control.roster.orders):
        try:
            yield
        except BaseException as error:
            with suppress(RuntimeError):  # the store is gone, and the nodes have seen that
                control.roster.dismiss(error.exit_code if isinstance(error, FlopsfitError) else 1)
            raise

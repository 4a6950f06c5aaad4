"""One node's share of a run, inside an actor of Ray: the same slots, workers and driver as anywhere else."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import LaunchError
from flopsfit_ds.engine.nodes.launch import LaunchedRank
from flopsfit_ds.engine.signals import Signals
from flopsfit_ds.engine.slurm.job import Bin
from flopsfit_ds.records import SweepFolder


class FolderNotSharedError(LaunchError):
    """A node does not see the sweep's folder; no run can be carried out there, whatever is tried."""


@dataclass(frozen=True)
class Task:
    """A run's work on its way to another process.

    Attributes:
        work: A `Bin`, pickled: Ray would unpickle it before this process knows where modules lie.
        sys_path: Where the driver finds modules.
        folder: In which the driver was started: relative paths begin there.
    """

    work: bytes
    sys_path: tuple[str, ...]
    folder: str

    @classmethod
    def pack(cls, work: Bin) -> Task:
        """The work, as this process would do it."""
        by_value: Any = importlib.import_module("ray.cloudpickle")

        dumps: Any = by_value.dumps  # pyright: ignore[reportPrivateImportUsage]
        return cls(dumps(work), tuple(sys.path), str(Path.cwd()))

    def unpack(self) -> Bin:
        """The work; from now on this process finds modules and files where the driver does."""
        sys.path += [place for place in self.sys_path if place not in sys.path]
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        return pickle.loads(self.work)


class NodeActor:
    """Carries a run out on the resources that Ray gave this process, together with the run's other nodes.

    It has two threads: one for the run, one that can be told to stop.
    """

    def __init__(self) -> None:
        self._signals = Signals()  # not entered: Python takes handlers in the main thread alone, which Ray has

    def carry_out(self, task: Task, node: int, num_nodes: int, name: str) -> str:
        """Carry the run out, or lend this node to the first.

        Args:
            task: The run.
            node: Number of this node in the run.
            num_nodes: Nodes of the run.
            name: Of this try, as no other is called.

        Returns:
            What became of it.

        Raises:
            FolderNotSharedError: This node does not see the sweep's folder.
        """
        work = task.unpack()
        if not SweepFolder(work.plan.folder).plan.exists():
            raise FolderNotSharedError(
                f"Ray node {socket.gethostname()} does not see {work.plan.folder}, where the driver wrote the sweep's "
                "plan: set output_root to a folder on a file system that all nodes mount at the same path"
            )
        notes = Path(work.plan.folder) / "ray"
        return work.carry_out(LaunchedRank(node, num_nodes, 0, 1), name, notes, self._signals)

    def stop(self) -> None:
        """Let the run write a checkpoint and end."""
        self._signals.note(signal.SIGTERM)

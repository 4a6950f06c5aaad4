"""Whose files are believed: those of a sweep's user that nobody else could have written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.base.seal import Seal, sweep_seal

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
SHARED = "or set execution.trust_shared_folder=true, if you trust all who can write there"


@dataclass(frozen=True)
class Trust:
    """What a checkpoint must show before it is loaded.

    Attributes:
        seal: Signs manifests; None where none is asked for.
        folder: Of the sweep: it and all folders below it on the way to a checkpoint must be this user's alone.
        shared: Whether the user trusts all who can write into the folder: then nothing is asked for.
    """

    seal: Seal | None = None
    folder: Path | None = None
    shared: bool = False

    @classmethod
    def of_sweep(cls, folder: Path, shared: bool) -> Trust:
        """What the checkpoints of a sweep must show.

        Raises:
            SweepFolderError: The sweep's key cannot be read or made.
        """
        return cls(shared=True) if shared else cls(sweep_seal(folder), folder)

    def check(self, paths: Iterable[Path]) -> None:
        """See that these files and folders, and the sweep's folders above them, are this user's alone.

        Raises:
            SweepFolderError: One is not; the message says what mends it.
        """
        if self.shared:
            return
        known: set[Path] = set()
        for path in paths:
            above = [each for each in path.parents if self.folder is not None and each.is_relative_to(self.folder)]
            for each in (*reversed(above), path):
                if each not in known:
                    known.add(each)
                    _check_one(each)


def _check_one(path: Path) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise SweepFolderError(f"{path}: is a symbolic link; put what it names in its place, {SHARED}")
    if status.st_uid != os.geteuid():
        raise SweepFolderError(
            f"{path}: belongs to user {status.st_uid}, this is user {os.geteuid()}; go on as that user, {SHARED}"
        )
    if status.st_mode & _OTHERS_WRITE:
        raise SweepFolderError(
            f"{path}: others can write there (mode {stat.S_IMODE(status.st_mode):o}), and what it holds is loaded; "
            f"chmod -R go-w {path}, {SHARED}"
        )

"""The text files of a corpus: which, and in which order their tokens follow each other."""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.contents import add_content, file_digests

_SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "turtledemo"}

Named = tuple[str, Path]
"""A file's name, relative to the folder that it was looked for in, and its path."""


def stdlib_files() -> list[Named]:
    """The standard library's own source.

    Raises:
        DataError: This Python came without it.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        found += [Path(folder) / name for name in names if name.endswith(".py")]
    if not found:
        raise DataError(f"{root}: the Python standard library has no source here; use data.source: text with own files")
    return [(str(path.relative_to(root)), path) for path in found]


def text_files(patterns: Iterable[str], base: Path) -> list[Named]:
    """The files that a spec's paths name, each once.

    Raises:
        DataError: A path that leads to no file, or a file that cannot be read.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        found_names = glob.glob(pattern, root_dir=base, recursive=True)  # noqa: PTH207 (absolute ones too)
        matches = [base / name for name in found_names]
        files = [match for match in matches if match.is_file()]
        for folder in (match for match in matches if match.is_dir()):
            files += [path for path in folder.rglob("*") if path.is_file()]
        if not files:
            raise DataError(f"data.paths: {base / pattern}: no such file or folder")
        found |= {os.path.relpath(path, base): path for path in files}
    for path in found.values():
        if not os.access(path, os.R_OK):
            raise DataError(f"data.paths: {path}: not readable")
    return list(found.items())


def by_content(files: Sequence[Named]) -> tuple[list[Path], str]:
    """Files in an order that their content gives, so that the held-out tail is a fair sample, and their fingerprint.

    Neither knows where the files lie or what they are called: a corpus that is moved or renamed is the same.
    """
    digests = file_digests([path for _, path in files])
    ordered = sorted(zip(digests, files, strict=True), key=lambda item: (item[0], item[1][0]))
    return [path for _, (_, path) in ordered], hashlib.sha256(b"".join(digest for digest, _ in ordered)).hexdigest()


def by_name(files: Sequence[Named]) -> tuple[list[Path], str]:
    """Files in an order that their names give, and a fingerprint of names, sizes and content.

    For the standard library, whose files' names are the same everywhere, and for sweeps that began before a corpus was
    its content alone.
    """
    ordered = sorted(files, key=lambda item: (hashlib.sha256(item[0].encode()).digest(), item[0]))
    digest = hashlib.sha256()
    for name, path in ordered:
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        add_content(digest, path, size)
    return [path for _, path in ordered], digest.hexdigest()

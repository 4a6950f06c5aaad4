"""The text files of a corpus: which, and in which order their tokens follow each other."""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.contents import add_content, file_digests
from flopsfit_ds.data.formats.containers import container_of, is_text

_SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "turtledemo"}
_LOOKED_AT = 1024  # files, evenly spread: a tenth of a second where they are many. Chosen
_HEAD_BYTES = 4096  # one page of a file system

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
            raise DataError(
                f"data.paths: {base / pattern}: no such file or folder; a relative path starts from the spec's folder"
            )
        found |= {os.path.relpath(path, base): path for path in files}
    for path in found.values():
        if not os.access(path, os.R_OK):
            raise DataError(f"data.paths: {path}: not readable")
    return list(found.items())


@dataclass(frozen=True)
class TextFiles:
    """The files of a corpus of texts.

    Attributes:
        paths: In the order in which their tokens follow each other.
        fingerprint: Hash of what they hold.
        copies: Of each, whether it holds what the one before it holds.
    """

    paths: tuple[Path, ...]
    fingerprint: str
    copies: tuple[bool, ...]


def by_content(files: Sequence[Named]) -> TextFiles:
    """Files in an order that their content gives, so that the held-out tail is a fair sample, and their fingerprint.

    Neither knows where the files lie or what they are called: a corpus that is moved or renamed is the same.
    """
    digests = file_digests([path for _, path in files])
    ordered = sorted(zip(digests, files, strict=True), key=lambda item: (item[0], item[1][0]))
    hashes = [digest for digest, _ in ordered]
    return TextFiles(
        tuple(path for _, (_, path) in ordered),
        hashlib.sha256(b"".join(hashes)).hexdigest(),
        tuple(bool(place) and hashes[place - 1] == digest for place, digest in enumerate(hashes)),
    )


def look_at_texts(files: TextFiles, heldout_tokens: int) -> tuple[str, ...]:
    """What is odd of texts and is trained on as it is, for plan and record.

    Raises:
        DataError: A file is no text but a container of something, or what is held out is trained on too.
    """
    count = min(len(files.paths), _LOOKED_AT)
    looked_at = [files.paths[number * (len(files.paths) - 1) // max(count - 1, 1)] for number in range(count)]
    binary = []
    for path in looked_at:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        found = container_of(head, ids=False)
        if found is not None:
            raise DataError(f"data.paths: {path} is {found[0]}, no text; {found[1]}")
        if not is_text(head):
            binary.append(path)
    notes = []
    if binary:
        notes.append(f"{len(binary):,} of {count:,} files looked at are no UTF-8 text ({binary[0].name}, ...): kept")
    listed = [path for path in files.paths if path.suffix in (".json", ".jsonl")]
    if listed:
        notes.append(
            f"{len(listed):,} files are JSON ({listed[0].name}, ...): fields' names and quotes are text too; "
            "data.source: jsonl reads one field"
        )
    return (*notes, *note_copies(files, heldout_tokens))


def note_copies(files: TextFiles, heldout_tokens: int) -> tuple[str, ...]:
    """What to say of files that are there more than once.

    Raises:
        DataError: What is held out is trained on too.
    """
    if not any(files.copies):
        return ()
    last = files.paths[-1]
    if files.copies[-1] and heldout_tokens <= last.stat().st_size:
        raise DataError(
            f"data.paths: all that is held out lies in {last}, and {files.paths[-2]} holds the same and is trained on: "
            "leave the copies out"
        )
    size = sum(path.stat().st_size for path, copied in zip(files.paths, files.copies, strict=True) if copied)
    return (f"{sum(files.copies):,} files, {size:,} bytes, are copies of others: kept",)


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

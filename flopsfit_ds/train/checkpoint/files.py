"""Checkpoints of one run that a kill cannot tear: a hidden folder, a manifest with hashes, one rename.

DeepSpeed writes its files with plain `torch.save`, and a pickle can be code. So only folders are loaded that are this
user's alone, whose manifest is signed with the sweep's key and whose files still have its hashes; and of them tensors
only, see `tensors`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import RecordError
from flopsfit_ds.base.storage import fsync_folder, read_json, write_json
from flopsfit_ds.base.text import shown
from flopsfit_ds.base.trust import Trust
from flopsfit_ds.base.units import format_bytes

TAG = "state"
"""Folder of DeepSpeed's own files inside a checkpoint."""

_log = logging.getLogger(__name__)
FORMAT = 1
"""Of our own part of a checkpoint; raised when a state written before would be gone on from wrongly: another order of
samples, another schedule, states that this program does not save or read. 1 is also what a manifest without it is."""
_KEPT = 2
"""The newest, and the one before it should the newest turn out to be damaged."""
_HASHING_THREADS = 4
"""Hashing and waiting for a disk both leave the interpreter free, and a rank has some cores. Chosen."""
_BLOCK_BYTES = 1 << 22  # 4 MiB: a sign of life between two, every few milliseconds

Pulse = Callable[[str], None]
"""Told a phase, again and again while work without steps goes on, so that it is not taken for a hang."""


def _ignore(word: str) -> None:
    pass


_MANIFEST = "manifest.json"
_ANYBODY = Trust(shared=True)


@dataclass(frozen=True)
class SavedState:
    """What a checkpoint says of itself.

    Attributes:
        path: Its folder.
        run_id: The run it belongs to.
        step: Optimiser steps done.
        seconds: Training time up to it, over all attempts.
        first_loss: Training loss of the first step.
        zero_stage: Of the engine that wrote it.
        world_size: Of the engine that wrote it.
        program: Versions of what wrote it, by name; nothing where it did not say.
    """

    path: Path
    run_id: str
    step: int
    seconds: float
    first_loss: float
    zero_stage: int
    world_size: int
    program: Mapping[str, str] = field(default_factory=dict)


def state_bytes(num_params_total: int, num_params_trainable: int) -> int:
    """Size of a checkpoint: weights in fp32, and of trainable ones a master copy and AdamW's two moments."""
    return 4 * num_params_total + 12 * num_params_trainable


def temporary_folder(folder: Path, step: int) -> Path:
    """Where all ranks write the checkpoint of a step before it is committed."""
    return folder / f".step-{step}.tmp"


def shortage(folder: Path, num_bytes: int) -> str | None:
    """Why `num_bytes` cannot be written below a folder, in words; None where there is room."""
    free = shutil.disk_usage(folder).free
    if free >= num_bytes:
        return None
    return f"{format_bytes(num_bytes)} are needed and {format_bytes(free)} are free in {folder}"


def commit_checkpoint(folder: Path, state: SavedState, pulse: Pulse = _ignore, trust: Trust = _ANYBODY) -> None:
    """Make a written checkpoint the newest: called on one rank, after all ranks have written.

    Of the others the one before it is kept. Later ones than it are of a line that the run has left (they were damaged,
    or of a layout that could not be read), and go too: they would shadow it.

    Args:
        folder: The run's checkpoint folder.
        state: Its `path` is the temporary folder.
        pulse: Told that the work goes on.
        trust: Its seal signs the manifest.
    """
    paths = list(_files(state.path))
    files = {
        str(path.relative_to(state.path)): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, _sha256_of_all(paths, partial(pulse, "checkpoint"), sync=True), strict=True)
    }
    for inner in (path for path in state.path.rglob("*") if path.is_dir()):
        fsync_folder(inner)
    fields: dict[str, Any] = asdict(state)
    del fields["path"], fields["program"]
    program = {"format": FORMAT, "versions": dict(state.program)}
    manifest: dict[str, Any] = {"state": fields, "files": files, "program": program}
    if trust.seal is not None:
        manifest["signature"] = trust.seal.sign(_MANIFEST, _signed_part(manifest))
    write_json(state.path / _MANIFEST, manifest)
    final = folder / f"step-{state.step}"
    if final.exists():
        discard(final)
    state.path.rename(final)
    fsync_folder(folder)
    _refusal(final).unlink(missing_ok=True)
    kept = [path for path in _folders(folder) if _step_of(path) <= state.step][:_KEPT]
    for old in set(_folders(folder)) - set(kept):
        discard(old)
        _refusal(old).unlink(missing_ok=True)


def _signed_part(manifest: dict[str, Any]) -> bytes:
    return json.dumps([manifest["state"], manifest["files"]], sort_keys=True).encode()


def newest_checkpoint(
    folder: Path,
    run_id: str,
    pulse: Pulse = _ignore,
    trust: Trust = _ANYBODY,
    program: Mapping[str, str] | None = None,
    passed_over: Callable[[str], None] = _ignore,
) -> SavedState | None:
    """The newest checkpoint of a run that can be gone on from; others are passed over, and said.

    Args:
        folder: The run's checkpoint folder.
        run_id: Of the run.
        pulse: Told that the work goes on.
        trust: What a checkpoint must show.
        program: Versions of what would load it: what they could not load before is passed over.
        passed_over: Told why each newer one is not used.

    Raises:
        SweepFolderError: Somebody else could have written it.
    """
    for path in _folders(folder):
        try:
            _see_that_it_was_not_refused(path, program or {})
            return verify_checkpoint(path, run_id, pulse, trust)
        except RecordError as error:
            _log.warning("%s: passed over: %s", path, error)
            passed_over(f"{path.name}: {error}")
    return None


def _refusal(path: Path) -> Path:
    return path.with_name(f"refused-{path.name}.json")


def refuse(saved: SavedState, program: Mapping[str, str], reason: str) -> None:
    """Note that these versions cannot load a whole checkpoint of others: from now on they pass it over.

    Raises:
        SweepFolderError: It cannot be noted.
    """
    write_json(_refusal(saved.path), {"program": dict(program), "reason": reason})


def _see_that_it_was_not_refused(path: Path, program: Mapping[str, str]) -> None:
    try:
        note = read_json(_refusal(path))
    except (FileNotFoundError, RecordError):
        return
    if note.get("program") == dict(program):
        raise RecordError(note["reason"])


def verify_checkpoint(path: Path, run_id: str, pulse: Pulse = _ignore, trust: Trust = _ANYBODY) -> SavedState:
    """See that a checkpoint is to be trusted, and compare every file of it with its manifest.

    Raises:
        RecordError: It is torn, altered or of another run.
        SweepFolderError: Somebody else could have written it.
    """
    trust.check([path, *path.rglob("*")])
    state, files = read_manifest(path, run_id, trust)
    found = {str(file.relative_to(path)) for file in _files(path)} - {_MANIFEST}
    if found != set(files):
        raise RecordError(f"its files are not those of its manifest: {sorted(found ^ set(files))}")
    for name, expected in files.items():
        if (path / name).stat().st_size != expected["bytes"]:
            raise RecordError(f"{name} has changed since it was written: {expected['bytes']} bytes are expected")
    for name, digest in zip(
        files, _sha256_of_all([path / name for name in files], partial(pulse, "verify")), strict=True
    ):
        if digest != files[name]["sha256"]:
            raise RecordError(f"{name} has changed since it was written")
    return state


def read_manifest(path: Path, run_id: str, trust: Trust) -> tuple[SavedState, dict[str, Any]]:
    """What a checkpoint says of itself and of its files.

    Raises:
        RecordError: It is torn, of another run or version, or was not signed with the sweep's key.
    """
    try:
        manifest = read_json(path / _MANIFEST)
    except FileNotFoundError:
        raise RecordError("it has no manifest") from None
    program = manifest.get("program", {}) if isinstance(manifest, dict) else {}
    versions = {str(name): str(version) for name, version in program.get("versions", {}).items()}
    if program.get("format", FORMAT) != FORMAT:
        raise RecordError(
            f"of format {shown(program['format'])}, by {describe(versions)}; this program reads format {FORMAT}"
        )
    try:
        state, files = SavedState(path=path, program=versions, **manifest["state"]), manifest["files"]
    except (KeyError, TypeError):
        raise RecordError(f"its manifest is of another version, by {describe(versions)}") from None
    if state.run_id != run_id:
        raise RecordError(f"it belongs to run {state.run_id}")
    seal, signature = trust.seal, manifest.get("signature")
    if seal is None or seal.matches(_MANIFEST, _signed_part(manifest), signature):
        return state, files
    if signature is not None or (path / _MANIFEST).stat().st_mtime > seal.made_at:
        raise RecordError("its manifest was not signed with this sweep's key")
    return state, files  # of a version before keys, and older than this sweep's


def describe(versions: Mapping[str, str]) -> str:
    """Versions in words, this package's first."""
    known = sorted(versions.items(), key=lambda each: (each[0] != "flopsfit-ds", each[0]))
    return ", ".join(f"{name} {version}" for name, version in known) or "a version that does not say which"


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed attempt left half-written."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def discard(path: Path) -> None:
    """Remove a folder so that a kill leaves it whole or out of sight."""
    hidden = path.with_name(f".{path.name.removeprefix('.').removesuffix('.tmp')}.gone.tmp")
    if hidden.exists():
        shutil.rmtree(hidden)
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _sha256_of_all(paths: Sequence[Path], pulse: Callable[[], None], sync: bool = False) -> list[str]:
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:  # hashing and waiting for a disk both leave the interpreter free
        return list(pool.map(lambda path: _sha256(path, pulse, sync), paths))


def _sha256(path: Path, pulse: Callable[[], None], sync: bool) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            pulse()
        if sync:
            os.fsync(stream.fileno())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _folders(folder: Path) -> list[Path]:
    """Committed checkpoints, newest first."""
    return sorted(folder.glob("step-*"), key=lambda path: -_step_of(path))


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))

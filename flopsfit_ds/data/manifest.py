"""What a file of token ids held when it was written or first trained on, kept beside it, and compared before more is.

A file of up to a GiB is compared by the hash of the whole. A larger one is compared by its size, its time stamp and a
thousand hashed samples; where its time stamp differs, as after a copy, the whole decides if its hash is known.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flopsfit_ds.base.errors import DataChangedError, DataError, RecordError
from flopsfit_ds.base.storage import json_converter, read_json, write_json
from flopsfit_ds.base.units import format_bytes
from flopsfit_ds.data.checks import other_ids, shared_file, within
from flopsfit_ds.data.contents import HASHED_WHOLE_BYTES
from flopsfit_ds.data.corpus import ABSENT, Corpus, find_corpus
from flopsfit_ds.data.mixture import mix
from flopsfit_ds.spec import DatasetData, MixtureData, SweepSpec
from flopsfit_ds.spec.data import FileSource

_SAMPLES = 1024  # places: a second where finding one takes a millisecond. Chosen
_SAMPLE_BYTES = 1 << 14  # 16 KiB, with _SAMPLES 16 MiB of a file
_READ_BYTES = 1 << 22  # 4 MiB: hashing is then as fast as from larger blocks

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """What is known of a file.

    Attributes:
        path: Where it lay, for people.
        num_bytes: Its size.
        dtype: Type of an id.
        num_tokens: Ids in it.
        modified_ns: Its time stamp.
        sha256: Of all of it; None of a large file that somebody else wrote.
        sampled_sha256: Of evenly spaced samples.
        made_from: Source and fingerprint of the corpus.
        num_documents: Documents in it, whose ends lie beside it; None where they are not known.
    """

    path: str
    num_bytes: int
    dtype: str
    num_tokens: int
    modified_ns: int
    sha256: str | None
    sampled_sha256: str
    made_from: dict[str, Any]
    num_documents: int | None = None


def made_from(corpus: Corpus) -> dict[str, Any]:
    """What a file of ids depends on."""
    return {"source": corpus.source, "fingerprint": corpus.fingerprint}


def written_dtype(corpus: Corpus, vocab_size: int) -> str:
    """Type of the ids that a corpus is written as."""
    return corpus.dtype if corpus.dtype == "uint8" else "uint16" if vocab_size <= 2**16 else "uint32"


def written_path(corpus: Corpus, folder: Path, vocab_size: int) -> Path:
    """Where a sweep's folder for data holds a corpus as ids; its manifest lies beside it."""
    return folder / f"tokens-{corpus.fingerprint}-{written_dtype(corpus, vocab_size)}.bin"


def find_spec_corpus(spec: SweepSpec, base: Path, vocab_size: int, folder: Path) -> Corpus:
    """What a spec trains on, with its held-out sets, and how many ids it is where the sweep's folder holds it as ids.

    Args:
        spec: The spec.
        base: Its folder.
        vocab_size: Of the model.
        folder: Where the sweep keeps its data.

    Raises:
        DataError: As `find_corpus`, or a held-out set is trained on or tokenised in another way.
    """
    if isinstance(spec.data, MixtureData):
        found = {}
        for name, data in spec.data.sources.items():
            with within(f"data.sources.{name}"):
                found[name] = _counted(data, base, vocab_size, folder)
        corpus = mix(found, spec.data.weights)
    else:
        corpus = _counted(spec.data, base, vocab_size, folder)
    sets = []
    for name, data in spec.heldout.items():
        with within(f"heldout.{name}"):
            other = _counted(data, base, vocab_size, folder)
        for each in corpus.trained_on:
            _check_set(name, other, each)
        sets.append((name, other))
    if not sets:
        return corpus
    notes = [f"held-out set {name}: {note}" for name, other in sets for note in other.notes]
    return replace(corpus, heldout_sets=tuple(sets), notes=(*corpus.notes, *notes))


def _check_set(name: str, other: Corpus, corpus: Corpus) -> None:
    """See that a held-out set is of the same ids as what is trained on, and no part of that.

    Raises:
        DataError: It is not.
    """
    words = other_ids(other, corpus)
    if words is not None:
        raise DataError(
            f"heldout.{name}: its ids are {words[0]}, and those of data are {words[1]}; use the same for both"
        )
    shared = shared_file(other, corpus)
    if shared is not None:
        raise DataError(f"heldout.{name}: {shared} is trained on, too; name files that data does not name")
    if other.fingerprint == corpus.fingerprint != ABSENT:
        raise DataError(f"heldout.{name}: its content is that of data, which is trained on; name other files")


def _counted(data: FileSource | DatasetData, base: Path, vocab_size: int, folder: Path) -> Corpus:
    corpus = find_corpus(data, base, vocab_size)
    if corpus.reading is None:
        return corpus
    path = written_path(corpus, folder, vocab_size)
    manifest = read_manifest(path.with_suffix(".json"))
    if manifest is None or manifest.made_from != made_from(corpus):
        return corpus
    if manifest.num_documents is not None:
        corpus = replace(corpus, ends=str(path.with_suffix(".ends")))
    if corpus.num_tokens is not None:
        return corpus
    documents = "" if manifest.num_documents is None else f" of {manifest.num_documents:,} documents"
    note = f"{manifest.num_tokens:,} ids{documents}, written before"
    return replace(corpus, num_tokens=manifest.num_tokens, notes=(*corpus.notes, note))


def describe(
    path: Path, corpus: Corpus, dtype: str, num_tokens: int, sha256: str | None = None, num_documents: int | None = None
) -> Manifest:
    """Say what a file holds; it is read whole only where it is small and `sha256` was not taken as it was written."""
    stat = path.stat()
    if sha256 is None and stat.st_size <= HASHED_WHOLE_BYTES:
        sha256 = _whole(path)
    return Manifest(
        path=str(path),
        num_bytes=stat.st_size,
        dtype=dtype,
        num_tokens=num_tokens,
        modified_ns=stat.st_mtime_ns,
        sha256=sha256,
        sampled_sha256=_sampled(path, stat.st_size),
        made_from=made_from(corpus),
        num_documents=num_documents,
    )


def write_manifest(place: Path, manifest: Manifest) -> None:
    """Write a manifest, atomically.

    Raises:
        SweepFolderError: The folder cannot be written.
    """
    write_json(place, asdict(manifest))


def read_manifest(place: Path) -> Manifest | None:
    """A manifest; None where there is none, or none that can be read, which is said."""
    try:
        return json_converter(Manifest).validate_python(read_json(place))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (RecordError, ValidationError) as error:
        _log.warning("%s: %s; it is written anew", place, str(error).splitlines()[0])
        return None


def difference(path: Path, manifest: Manifest) -> str | None:
    """In which way a file is not what its manifest says; None where it is. What was compared is logged.

    A file that has not been touched since the last call of this process is not read again.
    """
    stat = path.stat()
    state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    known = (manifest.num_bytes, manifest.modified_ns, manifest.sha256, manifest.sampled_sha256)
    return _difference(path, state, *known)


@functools.lru_cache(maxsize=16)
def _difference(
    path: Path, state: tuple[int, int, int, int], num_bytes: int, modified_ns: int, sha256: str | None, sampled: str
) -> str | None:
    size, modified = state[:2]
    if size != num_bytes:
        return f"it has {size} bytes and had {num_bytes}"
    if sha256 is not None and (size <= HASHED_WHOLE_BYTES or modified != modified_ns):
        _log.info("%s: %s, compared by the SHA-256 of the whole", path, format_bytes(size))
        found = _whole(path)
        return None if found == sha256 else f"its SHA-256 is {found[:12]} and was {sha256[:12]}"
    _log.info("%s: %s, compared by size, time stamp and %d samples", path, format_bytes(size), _SAMPLES)
    if _sampled(path, size) != sampled:
        return "samples of its content changed, at the same size"
    if modified != modified_ns:
        _log.warning("%s has another time stamp than when the sweep began; its size and samples are the same", path)
    return None


def _whole(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sampled(path: Path, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for index in range(_SAMPLES if size > _SAMPLE_BYTES else 1):
            stream.seek(max(0, size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def check_source(corpus: Corpus, folder: Path) -> None:
    """See that a `tokens` file is the one that this sweep began with.

    Args:
        corpus: The data, as it is planned now.
        folder: Where the sweep keeps its data.

    Raises:
        DataError: The file changed since.
    """
    path = Path(corpus.files[0])
    manifest = read_manifest(source_manifest(corpus, folder))
    changed = None if manifest is None else difference(path, manifest)
    if changed is not None:
        raise DataError(
            f"data.path: {path} changed since this sweep began: {changed}; restore it, or give the study of the new "
            "file another name (what was trained keeps its records)"
        )


@dataclass(frozen=True)
class WatchedFile:
    """A file of ids that is trained on where the user has it; it must stay what it was when the sweep began.

    Attributes:
        path: Where it lies.
        manifest: What it held.
    """

    path: str
    manifest: Manifest

    def check(self) -> None:
        """See that it has not been changed under a run; one that is gone stays what it was for whoever has it open.

        Raises:
            DataChangedError: It has.
        """
        path = Path(self.path)
        try:
            stat = path.stat()
            if (stat.st_size, stat.st_mtime_ns) == (self.manifest.num_bytes, self.manifest.modified_ns):
                return
            changed = difference(path, self.manifest)
        except FileNotFoundError:
            return
        if changed is not None:
            raise DataChangedError(
                f"data.path: {path} changed while it was trained on: {changed}; restore it, and the run goes on from "
                "its newest checkpoint, which was written before"
            )


def watched_files(corpora: Sequence[Corpus], folder: Path) -> tuple[WatchedFile, ...]:
    """Those of some prepared corpora that are files of the user's own.

    Args:
        corpora: What is trained on, and measured.
        folder: Where the sweep keeps its data.
    """
    found = []
    for corpus in corpora:
        manifest = read_manifest(source_manifest(corpus, folder)) if corpus.source == "tokens" else None
        if manifest is not None:
            found.append(WatchedFile(corpus.files[0], manifest))
    return tuple(found)


def source_manifest(corpus: Corpus, folder: Path) -> Path:
    """Where the manifest of a `tokens` file lies, which itself stays where the user has it."""
    place = os.path.abspath(corpus.files[0])  # noqa: PTH100 (a symbolic link may lead elsewhere tomorrow)
    return folder / f"source-{hashlib.sha256(place.encode()).hexdigest()[:12]}.json"

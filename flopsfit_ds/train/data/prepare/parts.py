"""Parts of a file of ids on disk: a part a piece, whole or not there, and joined once all are."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from flopsfit_ds.base.errors import RecordError
from flopsfit_ds.base.storage import cannot_write, fsync_folder, json_converter, read_json, write_json
from flopsfit_ds.data.sources.reading import Piece
from flopsfit_ds.train.data.prepare.encode import Encoder

_BLOCK_BYTES = 1 << 22  # hashing is then as fast as from larger blocks


@dataclass(frozen=True)
class Part:
    """What a piece gave.

    Attributes:
        num_bytes: Of its ids.
        num_documents: Documents; None where they are not known.
        crc32: Of its ids, then of its documents' ends.
    """

    num_bytes: int
    num_documents: int | None
    crc32: int


@dataclass(frozen=True)
class Joined:
    """A file of ids that is there.

    Attributes:
        sha256: Of it.
        num_documents: Documents; None where they are not known.
    """

    sha256: str
    num_documents: int | None


def write_part(encoder: Encoder, piece: Piece, place: Path, pulse: Callable[[], None]) -> Part:
    """Write the ids of a piece to `place`.bin, where its documents end to `place`.ends, and what both are beside them.

    An end is two int64: ids up to it, and bytes of text up to it, -1 where documents are known as ids only.

    Args:
        encoder: Of the corpus.
        piece: To be read.
        place: Path without a suffix.
        pulse: Called at each batch of documents.

    Raises:
        DataError: The piece cannot be read.
        SweepFolderError: The part cannot be written.
    """
    ids_path, ends_path = place.with_suffix(".bin"), place.with_suffix(".ends")
    written, checksum, documents, known = 0, 0, [], True
    text_bytes = 0
    try:
        with ids_path.open("wb") as stream:
            for found in encoder.read(piece):
                pulse()
                content = found.ids.tobytes()
                checksum = zlib.crc32(content, checksum)
                start = written // found.ids.itemsize
                written += stream.write(content)
                if found.lengths is None:
                    known = False
                else:
                    ends = start + np.cumsum(found.lengths, dtype="<i8")
                    if found.num_bytes is None:
                        documents.append(np.column_stack([ends, np.full_like(ends, -1)]))
                    else:
                        documents.append(np.column_stack([ends, text_bytes + np.cumsum(found.num_bytes, dtype="<i8")]))
                        text_bytes = int(documents[-1][-1, 1])
        ends = np.concatenate(documents) if documents else np.empty((0, 2), "<i8")
        ends_path.write_bytes(ends.tobytes())
    except OSError as error:
        raise cannot_write(ids_path, error) from None
    part = Part(written, len(ends) if known else None, zlib.crc32(ends.tobytes(), checksum))
    write_json(place.with_suffix(".json"), asdict(part), durable=False)
    return part


def part_at(place: Path) -> Part | None:
    """A part that was written before; None where there is none that is whole."""
    try:
        part = json_converter(Part).validate_python(read_json(place.with_suffix(".json")))
        checksum = 0
        for suffix in (".bin", ".ends"):
            with place.with_suffix(suffix).open("rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    checksum = zlib.crc32(block, checksum)
    except (OSError, RecordError, ValidationError):
        return None
    return part if checksum == part.crc32 else None


def join(places: Sequence[Path], parts: Sequence[Part], path: Path, id_bytes: int) -> Joined:
    """Write all parts as one file that is there whole or not at all, and beside it, as `.ends`, where documents end.

    Args:
        places: Of the parts, in order.
        parts: What they are.
        path: The file.
        id_bytes: Bytes of an id.

    Raises:
        SweepFolderError: It cannot be written.
    """
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed here
        leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    ends_path = path.with_suffix(".ends")
    digest = hashlib.sha256()
    known = all(part.num_documents is not None for part in parts)
    try:
        ends_path.unlink(missing_ok=True)
        with temporary.open("wb") as stream, open(os.devnull, "wb") if not known else ends_path.open("wb") as ends:  # noqa: PTH123
            start = np.zeros(2, "<i8")
            for place, part in zip(places, parts, strict=True):
                with place.with_suffix(".bin").open("rb") as source:
                    while block := source.read(_BLOCK_BYTES):
                        digest.update(block)
                        stream.write(block)
                found = read_ends(place)
                unknown = found[:, 1] < 0
                found += start
                found[unknown, 1] = -1
                ends.write(found.tobytes())
                start[0] += part.num_bytes // id_bytes
                start[1] = found[-1, 1] if len(found) and not unknown[-1] else start[1]
            for written in (stream, ends):
                written.flush()
                if written is stream or known:
                    os.fsync(written.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    return Joined(digest.hexdigest(), sum(part.num_documents or 0 for part in parts) if known else None)


def read_ends(path: Path) -> np.ndarray:
    """Where the documents of a part, or of a file of ids, end: ids and bytes of text up to each, [documents, 2]."""
    return np.fromfile(path.with_suffix(".ends"), "<i8").reshape(-1, 2)


def remove(folder: Path) -> None:
    """Remove the parts, once they are joined."""
    shutil.rmtree(folder, ignore_errors=True)

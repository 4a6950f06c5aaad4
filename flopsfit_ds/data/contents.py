"""What files hold, as hashes: of small ones whole, of large ones 64 evenly spaced blocks of 64 KiB and the size."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.base.storage import atomic_write, user_cache_folder

SAMPLE_BYTES = 1 << 16  # with SAMPLES 4 MiB a file; part of run ids, so that it stays
SAMPLES = 64  # evenly spaced, first and last included
HASHED_WHOLE_BYTES = 1 << 30
"""A token file up to this size is compared by all of its content, in a few seconds; a larger one by samples."""
_REMEMBERED_BYTES = 1 << 26
"""A corpus of which more than this would be read is hashed once; later its files are known by size and time stamps."""
_SETTLED_SECONDS = 2.0
"""A file that was changed just now may change again within one tick of its file system's clock."""

_log = logging.getLogger(__name__)


def add_content(digest: hashlib._Hash, path: Path, size: int) -> None:
    """Feed a file to a hash: whole, or of a large file evenly spaced blocks."""
    with path.open("rb") as stream:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(stream.read())
            return
        for index in range(SAMPLES):
            stream.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))


def file_digests(paths: Sequence[Path]) -> list[bytes]:
    """A hash of each file's size and content, wherever it lies and whatever it is called.

    Of a corpus that takes long to read they are remembered in the user's cache folder, for as long as every file keeps
    its size, its inode and both its time stamps; the time of the last change, unlike that of the last modification,
    cannot be set back.
    """
    stats = [path.stat() for path in paths]
    if sum(min(stat.st_size, SAMPLES * SAMPLE_BYTES) for stat in stats) <= _REMEMBERED_BYTES:
        return [_digest(path, stat.st_size) for path, stat in zip(paths, stats, strict=True)]
    states = [
        [str(path.absolute()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
        for path, stat in zip(paths, stats, strict=True)
    ]
    key = hashlib.sha256(json.dumps(states).encode()).hexdigest()[:32]
    remembered = _remembered(key, len(paths))
    if remembered is not None:
        return remembered
    settled = max(stat.st_ctime for stat in stats) < time.time() - _SETTLED_SECONDS
    digests = [_digest(path, stat.st_size) for path, stat in zip(paths, stats, strict=True)]
    if settled:
        _remember(key, digests)
    return digests


def _digest(path: Path, size: int) -> bytes:
    digest = hashlib.sha256(f"{size}\0".encode())
    add_content(digest, path, size)
    return digest.digest()


def _remembered(key: str, count: int) -> list[bytes] | None:
    try:
        content = (user_cache_folder("contents") / key).read_bytes()
    except (OSError, RuntimeError):
        return None
    digests = [content[start : start + 32] for start in range(0, 32 * count, 32)]
    whole = len(content) == 32 * (count + 1) and hashlib.sha256(content[:-32]).digest() == content[-32:]
    return digests if whole else None


def _remember(key: str, digests: Sequence[bytes]) -> None:
    content = b"".join(digests)
    try:
        folder = user_cache_folder("contents")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / key, content + hashlib.sha256(content).digest(), durable=False)
    except (OSError, RuntimeError, SweepFolderError) as error:
        _log.warning("the corpus is hashed again at each planning, for its hashes cannot be kept: %s", error)

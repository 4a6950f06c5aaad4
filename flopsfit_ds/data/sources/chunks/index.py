"""What folders of chunks have in common: an `index.json`, and a table of offsets at the head of each chunk."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import IO, Any

from flopsfit_ds.base.errors import DataError


def read_index(folder: Path, library: str) -> dict[str, Any]:
    """The `index.json` of a folder.

    Raises:
        DataError: There is none that can be read.
    """
    try:
        found = json.loads((folder / "index.json").read_bytes())
    except OSError as error:
        raise DataError(
            f"data.path: {folder / 'index.json'}: {error.strerror}; it takes a folder that {library} wrote"
        ) from None
    except ValueError as error:
        raise DataError(f"data.path: {folder / 'index.json'} is damaged ({error}); write the folder again") from None
    if not isinstance(found, dict):
        raise DataError(f"data.path: {folder / 'index.json'} is damaged; write the folder again")
    return found


def check_size(path: Path, num_bytes: int, folder: Path) -> None:
    """See that a chunk is there, and as long as the index says.

    Raises:
        DataError: It is not.
    """
    if path.parent != folder or not path.is_file():
        raise DataError(f"data.path: {folder}: its index names {path.name}, and there is no such file: it ends early")
    size = path.stat().st_size
    if size != num_bytes:
        raise DataError(
            f"data.path: {path} has {size} bytes, and its index says {num_bytes}: it ends early or is another's; write "
            "or fetch it again"
        )


def read_offsets(stream: IO[bytes], path: Path) -> tuple[int, ...]:
    """The byte at which each sample of a chunk begins, and the end: a count and offsets, uint32 each.

    Raises:
        DataError: The chunk is shorter.
    """
    head = stream.read(4)
    (count,) = struct.unpack("<I", head) if len(head) == 4 else (0,)
    table = stream.read(4 * (count + 1))
    if not count or len(table) < 4 * (count + 1):
        raise DataError(f"data.path: {path} ends early; write or fetch it again")
    return struct.unpack(f"<{count + 1}I", table)

"""Token files of llm.c: 256 int32 of header (magic, version, number of ids), then the ids.

Source: `dev/data/data_common.py` of llm.c, which writes GPT-2's ids as uint16 and Llama 3's as uint32.
"""

from __future__ import annotations

import struct
from pathlib import Path

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.formats.layout import BYTES_PER_ID, Layout

HEADER_BYTES = 1024  # 256 int32
_KINDS = {20240520: (1, "uint16"), 20240801: (7, "uint32")}  # magic numbers, with version and type of ids
_EVALUATION = 20240522  # magic number of HellaSwag's files, which are no training data


def is_llmc(head: bytes) -> bool:
    """Whether the first bytes of a file are those of llm.c."""
    return len(head) >= 4 and struct.unpack("<i", head[:4])[0] in (*_KINDS, _EVALUATION)


def read_llmc(path: Path, head: bytes, num_bytes: int) -> Layout:
    """What the header says.

    Args:
        path: The file.
        head: At least its first 12 bytes, where it has as many.
        num_bytes: Its size.

    Raises:
        DataError: An evaluation's file, another version, or another number of ids than the header tells of.
    """
    if num_bytes < HEADER_BYTES:
        raise DataError(
            f"data.path: {path} begins as a file of llm.c and has {num_bytes} bytes, fewer than that header's "
            f"{HEADER_BYTES}; it is cut short: write it again"
        )
    magic, version, count = struct.unpack("<3i", head[:12])
    if magic == _EVALUATION:
        raise DataError(f"data.path: {path} is an evaluation file of llm.c (magic {magic}), no row of training ids")
    known, dtype = _KINDS[magic]
    if version != known:
        raise DataError(
            f"data.path: {path} is a file of llm.c (magic {magic}) of version {version}; version {known} can be read: "
            "write it again, or without a header and with data.dtype"
        )
    found = num_bytes - HEADER_BYTES
    if count <= 0 or found != count * BYTES_PER_ID[dtype]:
        raise DataError(
            f"data.path: {path}: its llm.c header tells of {count} ids of {dtype}, {count * BYTES_PER_ID[dtype]} "
            f"bytes, and {found} bytes follow; it is cut short or was added to: write it again"
        )
    return Layout("llm.c", dtype, HEADER_BYTES, count, f"its llm.c header (magic {magic}), which is skipped")

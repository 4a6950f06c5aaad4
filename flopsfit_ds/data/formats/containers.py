"""Files that are no row of ids and no text: containers known by their first bytes, and texts taken for ids."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from pathlib import Path

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.formats.layout import BYTES_PER_ID, Layout

_HEADER_BYTES, _HEADER_FIELDS = 1024, 64
"""Of llm.c's header, the commonest of files of ids, and where its fields end with room to spare: the rest is 0."""
_TAIL_BYTES = 4096  # one page of a file system
_BYTES = 256  # ids of a vocabulary of bytes
_LEAST_TEXT_BYTES = 64
"""Of 50,257 ids drawn evenly so many bytes look like text once in 1e27 files."""
_NO_TEXT = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r\x1b")
_SHOWN_BYTES = 24  # in an error of one line

_GZIP = b"\x1f\x8b\x08"
_CONTAINERS: tuple[tuple[bytes, str, str], ...] = (
    (_GZIP, "a gzip archive", "unpack it"),
    (b"PK\x03\x04", "a zip archive (as .npz, .pt and .docx are)", "save the ids with numpy.save, one row in a .npy"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it"),
    (b"BZh", "a bzip2 archive", "unpack it"),
    (b"\x04\x22\x4d\x18", "an lz4 archive", "unpack it"),
    (b"PAR1", "a Parquet table", "use it with data.source: parquet"),
    (b"ARROW1\x00\x00", "an Arrow table", "write its column out: a .npy of ids, or text files"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write its data set out: a .npy of ids, or text files"),
    (b"SQLite format 3\x00", "an SQLite database", "write its column out: a .npy of ids, or text files"),
    (b"\x93NUMPY", "a numpy array", "use it with data.source: tokens"),
    (b"MMIDIDX\x00\x00", "a Megatron index", "name the .bin beside it, with data.source: tokens"),
    (b"\x89PNG\r\n\x1a\n", "a picture", "leave it out"),
    (b"\xff\xd8\xff", "a picture", "leave it out"),
    (b"%PDF-", "a PDF", "write its text out"),
    (b"\xff\xfe", "UTF-16 text", "write it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "write it as UTF-8"),
)
"""First bytes, what begins with them, what to do. Sources: the formats' specifications."""
_LEAST_MAGIC_BYTES = 4
"""A row of ids begins with these by chance once in billions; gzip's three are a rare id and half of another."""
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")


def container_of(head: bytes, *, ids: bool) -> tuple[str, str] | None:
    """What a file is, and what to do; None where its first bytes are those of no container.

    Args:
        head: Its first bytes.
        ids: Whether it may be a row of ids, which may begin with any two or three bytes.
    """
    for magic, kind, remedy in _CONTAINERS:
        if head.startswith(magic) and (not ids or len(magic) >= _LEAST_MAGIC_BYTES or magic == _GZIP):
            return kind, remedy
    if head[:4] == b"\xff\xff\xff\xff" and head[8:12] == b"\x10\x00\x00\x00":  # length and root of a FlatBuffer
        return "an Arrow stream", "write its column out: a .npy of ids, or text files"
    if len(head) > 9 and head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file", "save the ids with numpy.save, one row in a .npy"
    return None


def check_is_ids(path: Path, blocks: Sequence[bytes], vocab_size: int) -> None:
    """See that a file without a header can be a row of ids.

    Args:
        path: The file.
        blocks: Samples of it, the first and the last included.
        vocab_size: Of the model: one of bytes reads texts as ids.

    Raises:
        DataError: It is a container, a text, or a shard of a data set that has an index.
    """
    found = container_of(blocks[0], ids=True)
    if found is not None or path.suffix in _PICKLES:
        kind, remedy = found or ("a pickle", "save the ids with numpy.save, one row in a .npy")
        raise DataError(f"data.path: {path} is {kind}, no row of token ids; {remedy}")
    if vocab_size > _BYTES and sum(map(len, blocks)) >= _LEAST_TEXT_BYTES and all(map(is_text, blocks)):
        raise DataError(
            f"data.path: {path} is text (it begins {blocks[0][:_SHOWN_BYTES]!r}), no row of token ids; write "
            "data.source: text and data.paths, or save the ids that it lists with numpy.save"
        )
    shards = _index_beside(path)
    if shards is not None:
        raise DataError(
            f"data.path: {path} is a shard of the data set of {shards.name} beside it, which has more in it than ids; "
            "read it with the library that wrote it, and save the ids with numpy.save"
        )


def is_text(block: bytes) -> bool:
    """Whether bytes are UTF-8 without control characters; the block may begin or end within a character."""
    if block.translate(None, _NO_TEXT) != block:
        return False
    start = next((place for place, byte in enumerate(block[:4]) if byte & 0xC0 != 0x80), 0)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(block[start:])
    except UnicodeDecodeError:
        return False
    return True


def _index_beside(path: Path) -> Path | None:
    """The `index.json` that litdata or MosaicML's streaming writes beside their shards, if it names this file."""
    index = path.with_name("index.json")
    try:
        saved = json.loads(index.read_bytes()) if index.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    shards = (saved.get("chunks") or saved.get("shards")) if isinstance(saved, dict) else None
    return index if isinstance(shards, list) and path.name in json.dumps(shards) else None


def odd_rows(path: Path, blocks: Sequence[bytes], layout: Layout, *, given: bool) -> tuple[str, ...]:
    """Look for rows of one id only: a header that is filled up, or room that nothing was written to.

    Args:
        path: The file.
        blocks: Samples of its ids, the first and the last included.
        layout: What is known of it.
        given: Whether the spec says the type.

    Returns:
        What is odd and was taken as it is, for plan and record.

    Raises:
        DataError: The file begins with an unknown header, or ends with one id only, where losses are measured.
    """
    width = BYTES_PER_ID[layout.dtype]
    constant = [block[:-width] == block[width:] for block in blocks]
    if all(constant):
        return ()
    notes = []
    head, rest = blocks[0][:_HEADER_BYTES], blocks[0][_HEADER_BYTES : 2 * _HEADER_BYTES]
    looks_like_header = any(head) and not any(head[_HEADER_FIELDS:]) and 2 * rest.count(0) < len(rest)
    if layout.format == "raw" and looks_like_header:
        said = f"of its first {_HEADER_BYTES:,} bytes only some of the first {_HEADER_FIELDS} are not 0, as of a header"
        if not given:
            raise DataError(
                f"data.path: {path}: {said} of an unknown kind (it begins {head[:_SHOWN_BYTES]!r}); write the ids "
                f"without it, or data.dtype: {layout.dtype} if these are ids"
            )
        notes.append(f"{path.name}: {said}; taken for ids, for data.dtype is given")
    last = blocks[-1][-_TAIL_BYTES:]
    if len(last) == _TAIL_BYTES and last[:-width] == last[width:]:
        raise DataError(
            f"data.path: {path}: its last {_TAIL_BYTES // width:,} ids and perhaps more are all "
            f"{int.from_bytes(last[:width], 'little')}, and losses are measured at its end; it was made larger than "
            "what was written, or filled up: cut it there"
        )
    if any(constant):
        notes.append(f"{path.name}: {sum(constant)} of {len(blocks)} samples of {len(blocks[0]):,} bytes are one id")
    return tuple(notes)

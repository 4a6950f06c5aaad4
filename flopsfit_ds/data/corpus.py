"""What a sweep trains on: which files, how many tokens, and a fingerprint of their content. No torch, no numpy.

The files themselves are tokenised by `flopsfit_ds.train.data`; this module answers a planner's questions in
milliseconds, also for corpora of terabytes.
"""

from __future__ import annotations

import ast
import glob
import hashlib
import os
import struct
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.spec import DatasetData, StdlibData, TextData, TokenData

ABSENT = "absent"
"""Fingerprint of a token file that does not exist yet: enough to plan with, not to train on."""
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 64
_BYTES_PER_ID = {"uint8": 1, "uint16": 2, "uint32": 4}
_SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "turtledemo"}


@dataclass(frozen=True)
class Corpus:
    """A corpus as the planner sees it.

    Attributes:
        source: Kind of source.
        files: Paths in the order in which their tokens follow each other.
        fingerprint: Hash of names, sizes and sampled content.
        num_tokens: All tokens, held-out ones included; None where only tokenising would tell.
        num_bytes: Size of the files.
        heldout_tokens: Tokens at the end that are kept out of training.
        dtype: Type of an id in a `tokens` file; `uint8` for bytes.
        tokenizer: Path of a `tokenizer.json`, or None.
    """

    source: Literal["python-stdlib", "text", "tokens", "dataset"]
    files: tuple[str, ...]
    fingerprint: str
    num_tokens: int | None
    num_bytes: int
    heldout_tokens: int
    dtype: str
    tokenizer: str | None

    @property
    def training_tokens(self) -> int | None:
        """Tokens to train on; None where only tokenising would tell."""
        return None if self.num_tokens is None else self.num_tokens - self.heldout_tokens


def find_corpus(data: StdlibData | TextData | TokenData | DatasetData, base: Path) -> Corpus:
    """Find the files of the spec's `data` section.

    Args:
        data: The section.
        base: Folder that relative paths start from: the spec's.

    Raises:
        DataError: A file is missing, empty, unreadable or of another type than stated.
    """
    if isinstance(data, DatasetData):
        raise DataError("data.source: dataset stands for an object handed to find_optimal; a spec names files instead")
    if isinstance(data, StdlibData):
        return _text_corpus("python-stdlib", _stdlib_files(), None, data.heldout_tokens)
    if isinstance(data, TextData):
        tokenizer = None
        if data.tokenizer is not None:
            tokenizer = base / data.tokenizer
            if not tokenizer.is_file():
                raise DataError(f"data.tokenizer: {tokenizer}: no such file; it takes a tokenizer.json")
        return _text_corpus("text", _text_files(data.paths, base), tokenizer, data.heldout_tokens)
    return _token_corpus(base / data.path, data)


def _text_corpus(
    source: Literal["python-stdlib", "text"], files: Sequence[tuple[str, Path]], tokenizer: Path | None, heldout: int
) -> Corpus:
    """Files in an order that a hash of their names gives, so that the held-out tail is a fair sample."""
    ordered = sorted(files, key=lambda item: (hashlib.sha256(item[0].encode()).digest(), item[0]))
    num_bytes = sum(path.stat().st_size for _, path in ordered)
    digest = _fingerprint(ordered)
    if tokenizer is not None:
        digest = hashlib.sha256(digest.encode() + tokenizer.read_bytes()).hexdigest()
    return Corpus(
        source=source,
        files=tuple(str(path) for _, path in ordered),
        fingerprint=digest[:16],
        num_tokens=num_bytes if tokenizer is None else None,
        num_bytes=num_bytes,
        heldout_tokens=heldout,
        dtype="uint8" if tokenizer is None else "uint32",
        tokenizer=None if tokenizer is None else str(tokenizer),
    )


def _stdlib_files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        found += [Path(folder) / name for name in names if name.endswith(".py")]
    if not found:
        raise DataError(f"{root}: the Python standard library has no source here; use data.source: text with own files")
    return [(str(path.relative_to(root)), path) for path in found]


def _text_files(patterns: Iterable[str], base: Path) -> list[tuple[str, Path]]:
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


def _token_corpus(path: Path, data: TokenData) -> Corpus:
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        if data.num_tokens is None:
            raise DataError(
                f"data.path: {path}: no such file; to plan a sweep before it exists, give data.num_tokens"
            ) from None
        return _absent_token_corpus(path, data, data.num_tokens)
    except OSError as error:
        raise DataError(f"data.path: {path}: {error.strerror}") from None
    if not path.is_file() or not os.access(path, os.R_OK):
        raise DataError(f"data.path: {path} is no file that can be read; it takes a .bin or .npy file of token ids")
    dtype, header = data.dtype, 0
    if path.suffix == ".npy":
        dtype, count, header = _read_npy_header(path)
        if dtype != data.dtype:
            raise DataError(f"data.path: {path} holds {dtype}; the spec says data.dtype: {data.dtype}")
    else:
        count, rest = divmod(num_bytes, _BYTES_PER_ID[dtype])
        if rest:
            raise DataError(f"data.path: {path} has {num_bytes} bytes, which is no whole number of {dtype} ids")
    if num_bytes - header < count * _BYTES_PER_ID[dtype] or count <= 0:
        raise DataError(f"data.path: {path} is empty or cut short: {num_bytes} bytes for {count} ids of {dtype}")
    if data.num_tokens not in (None, count):
        raise DataError(f"data.path: {path} holds {count} ids; the spec says data.num_tokens: {data.num_tokens}")
    return Corpus(
        source="tokens",
        files=(str(path),),
        fingerprint=_fingerprint([(path.name, path)])[:16],
        num_tokens=count,
        num_bytes=num_bytes,
        heldout_tokens=data.heldout_tokens,
        dtype=dtype,
        tokenizer=None,
    )


def _absent_token_corpus(path: Path, data: TokenData, num_tokens: int) -> Corpus:
    return Corpus(
        source="tokens",
        files=(str(path),),
        fingerprint=ABSENT,
        num_tokens=num_tokens,
        num_bytes=num_tokens * _BYTES_PER_ID[data.dtype],
        heldout_tokens=data.heldout_tokens,
        dtype=data.dtype,
        tokenizer=None,
    )


def _read_npy_header(path: Path) -> tuple[str, int, int]:
    """Type, count and offset of a one-dimensional `.npy` file (format of NEP 1)."""
    with path.open("rb") as stream:
        magic = stream.read(8)
        if magic[:6] != b"\x93NUMPY" or len(magic) < 8:
            raise DataError(f"data.path: {path} is no .npy file")
        length_format = "<H" if magic[6] == 1 else "<I"
        length_bytes = stream.read(struct.calcsize(length_format))
        try:
            (length,) = struct.unpack(length_format, length_bytes)
            header = ast.literal_eval(stream.read(length).decode("latin1"))
            kind, shape = header["descr"], header["shape"]
            dimensions = len(shape)
        except (struct.error, ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
            raise DataError(f"data.path: {path}: its .npy header is damaged") from None
        offset = stream.tell()
    known = {"<u2": "uint16", "<u4": "uint32"}
    if not isinstance(kind, str) or kind not in known or dimensions != 1 or not isinstance(shape[0], int):
        raise DataError(f"data.path: {path} holds {kind} of shape {shape}; it takes one row of uint16 or uint32 ids")
    return known[kind], shape[0], offset


def _fingerprint(files: Sequence[tuple[str, Path]]) -> str:
    """Hash of names, sizes and content; of a large file 64 evenly spaced blocks of 64 KiB stand for the whole."""
    digest = hashlib.sha256()
    for name, path in files:
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(stream.read())
            else:
                for index in range(_SAMPLES):
                    stream.seek((size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
                    digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()

"""From a corpus to one memory-mapped file of token ids: made once, and known by a manifest ever after."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.corpus import Corpus
from flopsfit_ds.data.manifest import (
    Manifest,
    check_source,
    describe,
    difference,
    made_from,
    read_manifest,
    source_manifest,
    write_manifest,
    written_dtype,
    written_path,
)
from flopsfit_ds.train.data.prepare.parts import read_ends
from flopsfit_ds.train.data.prepare.pool import Progress, write_corpus

_CHUNK_IDS = 1 << 24  # 64 MiB of four bytes each at a time
_SCANNED_CHUNKS = 32  # with _CHUNK_IDS half a billion ids, scanned in seconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenFile:
    """Token ids on disk.

    Attributes:
        path: Of little-endian ids.
        dtype: Of an id, by numpy's name.
        num_tokens: All of them.
        heldout_tokens: At the end, kept out of training.
        offset: Bytes before the first id.
        bytes_per_token: Of text, among the held-out tokens; None where documents are known as ids only.
        ends: The file that says where documents end; None where none does.
    """

    path: str
    dtype: str
    num_tokens: int
    heldout_tokens: int
    offset: int = 0
    bytes_per_token: float | None = None
    ends: str | None = None

    def open(self) -> np.ndarray:
        """The ids, memory-mapped, [num_tokens]."""
        little_endian = np.dtype(self.dtype).newbyteorder("<")
        return np.memmap(self.path, little_endian, mode="r", offset=self.offset, shape=(self.num_tokens,))


def prepare_tokens(
    corpus: Corpus,
    folder: Path,
    vocab_size: int,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> TokenFile:
    """Write a corpus as one file of ids, or find it again, and see that every id is in the vocabulary.

    A file that is there is compared with its manifest; one that differs, or has none, is written anew. A file of the
    user's own gets a manifest here, and must not change afterwards.

    Args:
        corpus: What `find_corpus` found.
        folder: Where the file, or the manifest of the user's own, is written.
        vocab_size: Of the model.
        workers: Processes that tokenise; without it as many as this process may use cores.
        progress: Told how far it is.

    Raises:
        DataError: An id beyond the vocabulary, a text that is no UTF-8, or a file of the user's that changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if corpus.source == "tokens":
        assert corpus.num_tokens is not None
        held, skipped, ends = corpus.heldout_tokens, corpus.offset, corpus.ends
        tokens = TokenFile(corpus.files[0], corpus.dtype, corpus.num_tokens, held, skipped, ends=ends)
        check_source(corpus, folder)
        _check_ids(tokens, vocab_size)
        place = source_manifest(corpus, folder)
        if read_manifest(place) is None:
            write_manifest(place, describe(Path(tokens.path), corpus, tokens.dtype, tokens.num_tokens))
        return tokens
    dtype = written_dtype(corpus, vocab_size)
    path = written_path(corpus, folder, vocab_size)
    manifest = _trusted(path, corpus, dtype)
    if manifest is None:
        before = _states(corpus)
        joined = write_corpus(corpus, path, dtype, vocab_size, workers, progress)
        _see_that_nothing_changed(corpus, before)
        num_tokens = path.stat().st_size // np.dtype(dtype).itemsize
        manifest = describe(path, corpus, dtype, num_tokens, joined.sha256, joined.num_documents)
        write_manifest(path.with_suffix(".json"), manifest)
    ends = None if manifest.num_documents is None else str(path.with_suffix(".ends"))
    tokens = TokenFile(str(path), dtype, manifest.num_tokens, corpus.heldout_tokens, ends=ends)
    tokens = replace(tokens, bytes_per_token=_bytes_per_token(tokens, manifest))
    _check_ids(tokens, vocab_size)
    return tokens


def _states(corpus: Corpus) -> list[tuple[int, int]]:
    stats = [Path(name).stat() for name in corpus.files]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def _see_that_nothing_changed(corpus: Corpus, before: list[tuple[int, int]]) -> None:
    """What was read is what was planned: without a manifest, a file of ids that is not is written again."""
    for name, earlier, now in zip(corpus.files, before, _states(corpus), strict=True):
        if now != earlier:
            raise DataError(f"{name} changed while it was read; start again, which plans for what it holds now")


def _trusted(path: Path, corpus: Corpus, dtype: str) -> Manifest | None:
    """The manifest of a file that is what it says; None where the file has to be written."""
    if not path.exists():
        return None
    manifest = read_manifest(path.with_suffix(".json"))
    if manifest is None:
        reason = "it has no manifest that can be read"
    elif manifest.made_from != made_from(corpus) or manifest.dtype != dtype:
        reason = "its manifest tells of another corpus"
    else:
        reason = difference(path, manifest)
    if reason is None:
        return manifest
    _log.warning("%s is not trusted: %s; it is written anew from the corpus", path, reason)
    return None


def _bytes_per_token(tokens: TokenFile, manifest: Manifest) -> float | None:
    """Bytes of text of a held-out token; of a document that is held out in part, the share of its tokens."""
    if manifest.num_documents is None:
        return None
    try:
        ends = read_ends(Path(tokens.path))
    except OSError:
        return None
    start = tokens.num_tokens - tokens.heldout_tokens
    if len(ends) != manifest.num_documents or not start + tokens.heldout_tokens > 0 or start < 0 or ends[-1, 1] < 0:
        return None
    ids, texts = (np.concatenate([[0], column]) for column in ends.T)
    return float(texts[-1] - np.interp(start, ids, texts)) / tokens.heldout_tokens


def _check_ids(tokens: TokenFile, vocab_size: int) -> None:
    """Look for ids outside the vocabulary: in all of a file of half a billion ids, in even samples of a larger one."""
    bounds = np.iinfo(tokens.dtype)
    if bounds.min == 0 and bounds.max < vocab_size:
        return
    ids = tokens.open()
    num_chunks = -(-len(ids) // _CHUNK_IDS)
    for index in np.unique(np.linspace(0, num_chunks - 1, min(num_chunks, _SCANNED_CHUNKS)).astype(int)):
        chunk = ids[index * _CHUNK_IDS : (index + 1) * _CHUNK_IDS]
        smallest, largest = int(chunk.min()), int(chunk.max())
        if smallest < 0:
            raise DataError(
                f"{tokens.path}: id {smallest} at position {int(index) * _CHUNK_IDS + int(chunk.argmin())} is "
                f"negative; write the file without such marks, or check data.dtype ({tokens.dtype})"
            )
        if largest >= vocab_size:
            position = int(index) * _CHUNK_IDS + int(chunk.argmax())
            raise DataError(
                f"{tokens.path}: id {largest} at position {position} is beyond model.vocab_size {vocab_size}; set "
                f"model.vocab_size to {largest + 1} or more, or check data.dtype ({tokens.dtype})"
            )

"""What a sweep trains on: which files, how many tokens, and a fingerprint of their content. No torch, no numpy.

The files themselves are tokenised by `flopsfit_ds.train.data`; this module answers a planner's questions in
milliseconds, also for corpora of terabytes.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.base.units import format_bytes, format_things
from flopsfit_ds.data.contents import HASHED_WHOLE_BYTES, file_digests
from flopsfit_ds.data.formats.layout import BYTES_PER_ID, Format
from flopsfit_ds.data.formats.megatron import index_of, pair_of
from flopsfit_ds.data.formats.passages import note_repeated_end
from flopsfit_ds.data.formats.token_file import check_width, read_layout
from flopsfit_ds.data.sources.arrow import files_of
from flopsfit_ds.data.sources.chunks import litdata, mds
from flopsfit_ds.data.sources.reading import Kind, Reading, source_of
from flopsfit_ds.data.texts import by_content, by_name, look_at_texts, note_copies, stdlib_files, text_files
from flopsfit_ds.data.tokenizer_file import end_of_document, read_tokenizer_file
from flopsfit_ds.spec import (
    DatasetData,
    FilesData,
    FolderData,
    HfData,
    LlmcData,
    MegatronData,
    StdlibData,
    TextData,
    TokenData,
)
from flopsfit_ds.spec.data import AnyData, FileSource

ABSENT = "absent"
"""Fingerprint of a token file that does not exist yet: enough to plan with, not to train on."""


@dataclass(frozen=True)
class Drawn:
    """What a run takes of a source.

    Attributes:
        source: Its name in a mixture; empty where there is one.
        num_tokens: Taken by the run.
        unique_tokens: To train on; None where only tokenising would tell.
    """

    source: str
    num_tokens: float
    unique_tokens: int | None

    @property
    def repeats(self) -> float | None:
        """How often the source is gone through; None where only tokenising would tell."""
        return None if not self.unique_tokens else self.num_tokens / self.unique_tokens


@dataclass(frozen=True)
class MixedSource:
    """One source of a mixture.

    Attributes:
        name: Of the spec.
        weight: A whole number; its share of all weights is that of the source among a run's tokens.
        corpus: What it holds.
    """

    name: str
    weight: int
    corpus: Corpus


@dataclass(frozen=True)
class Corpus:
    """A corpus as the planner sees it.

    Attributes:
        source: Kind of source.
        files: Paths in the order in which their tokens follow each other.
        fingerprint: Hash of sizes and sampled content; of the standard library of names, too.
        num_tokens: All tokens, held-out ones included; None where only tokenising would tell.
        num_bytes: Size of the files.
        heldout_tokens: Tokens at the end that are kept out of training.
        dtype: Type of an id in a `tokens` file; `uint8` for bytes.
        tokenizer: Path of a `tokenizer.json`, or None.
        format: Kind of a `tokens` file.
        offset: Bytes before the first id of a `tokens` file.
        notes: What is assumed of the data, or was found out about it, for plan and record.
        reading: How its documents are read; None of a file of ids that is read in place, and of an object.
        heldout_sets: Further corpora by name, of which the held-out tokens are measured and none is trained on.
        mixed: Of a mixture, its sources; files, tokens and bytes are then those of all of them.
        ends: The file that says where its documents end; None where none does.
    """

    source: Literal[
        "python-stdlib", "text", "tokens", "dataset", "jsonl", "parquet", "hf", "llm.c", "mds", "litdata", "webdataset",
        "mixture",
    ]  # fmt: skip
    files: tuple[str, ...]
    fingerprint: str
    num_tokens: int | None
    num_bytes: int
    heldout_tokens: int
    dtype: str
    tokenizer: str | None
    format: Format = "raw"
    offset: int = 0
    notes: tuple[str, ...] = ()
    reading: Reading | None = None
    heldout_sets: tuple[tuple[str, Corpus], ...] = ()
    mixed: tuple[MixedSource, ...] = ()
    ends: str | None = None

    @property
    def trained_on(self) -> tuple[Corpus, ...]:
        """What is a file of ids each: the sources of a mixture, else this one."""
        return tuple(source.corpus for source in self.mixed) or (self,)

    @property
    def absent(self) -> str | None:
        """A file of ids that does not exist yet; None where all do."""
        return next((each.files[0] for each in self.trained_on if each.fingerprint == ABSENT), None)

    def drawn(self, num_tokens: int) -> tuple[Drawn, ...]:
        """What a run of so many tokens takes of the data: of each source of a mixture, else of all of it."""
        if not self.mixed:
            return (Drawn("", num_tokens, self.training_tokens),)
        total = sum(source.weight for source in self.mixed)
        return tuple(
            Drawn(source.name, num_tokens * source.weight / total, source.corpus.training_tokens)
            for source in self.mixed
        )

    def distinct_tokens(self, num_tokens: int) -> int | None:
        """Tokens to train on that a run of so many can see; fewer than those where any is seen twice.

        Where a source of a mixture is used up, the others count as far as they are drawn. None where only tokenising
        would tell.
        """
        if self.training_tokens is None:
            return None
        drawn = self.drawn(num_tokens)
        if not self.mixed or all((each.repeats or 0) <= 1 for each in drawn):
            return self.training_tokens
        return int(sum(min(each.unique_tokens or 0, each.num_tokens) for each in drawn))

    @property
    def training_tokens(self) -> int | None:
        """Tokens to train on; None where only tokenising would tell."""
        return None if self.num_tokens is None else self.num_tokens - self.heldout_tokens

    @property
    def identity(self) -> list[Any]:
        """All of the data that can change a loss."""
        skipped = [self.offset] if self.format == "llm.c" else []  # others' headers were never trained on
        sets = [[name, *corpus.identity] for name, corpus in self.heldout_sets]  # none where there are none, as ever
        mixed = [[source.weight, *source.corpus.identity] for source in self.mixed]
        return [self.source, self.fingerprint, self.heldout_tokens, self.dtype, *skipped, *mixed, *sets]


@dataclass(frozen=True)
class FormerCorpus:
    """The same files as an earlier version of this package saw them.

    Attributes:
        corpus: With the fingerprint and the order of that version.
        fault: What was wrong with the ids that it trained on; None where nothing was.
    """

    corpus: Corpus
    fault: str | None


def find_corpus(data: FileSource | DatasetData, base: Path, vocab_size: int) -> Corpus:
    """Find the files of the spec's `data` section.

    Args:
        data: The section, or one source of a mixture.
        base: Folder that relative paths start from: the spec's.
        vocab_size: Of the model.

    Raises:
        DataError: A file is missing, empty, unreadable, of another type than stated, or no file of this vocabulary.
    """
    if isinstance(data, DatasetData):
        raise DataError("data.source: dataset stands for an object handed to find_optimal; a spec names files instead")
    if isinstance(data, StdlibData):
        return _stdlib_corpus(data)
    if isinstance(data, TextData):
        return _text_corpus(data, base, vocab_size)
    if isinstance(data, MegatronData):
        return _token_corpus(pair_of(base / data.path), data.heldout_tokens, vocab_size)
    if isinstance(data, TokenData):
        path = base / data.path
        return _token_corpus(path, data.heldout_tokens, vocab_size, dtype=data.dtype, num_tokens=data.num_tokens)
    return _document_corpus(data, base, vocab_size)


def _stdlib_corpus(data: StdlibData) -> Corpus:
    ordered, fingerprint = by_name(stdlib_files())
    corpus = _text("python-stdlib", ordered, fingerprint, data.heldout_tokens)
    note = (
        f"the standard library of Python {platform.python_version()}: {corpus.num_tokens:,} ids in {len(ordered):,} "
        "files; that of another version of Python is another corpus"
    )
    return replace(corpus, notes=(note,))


def _text_corpus(data: TextData, base: Path, vocab_size: int) -> Corpus:
    files = by_content(text_files(data.paths, base))
    corpus = _text("text", files.paths, files.fingerprint, data.heldout_tokens)
    shown = f"{format_things(len(files.paths), 'file')}, {corpus.num_bytes:,} bytes"
    odd = look_at_texts(files, data.heldout_tokens)
    if data.tokenizer is None:
        return replace(corpus, notes=(f"{shown}, a byte an id", *odd))
    tokenizer = base / data.tokenizer
    facts = read_tokenizer_file(tokenizer, vocab_size)
    digest = hashlib.sha256(files.fingerprint.encode() + tokenizer.read_bytes()).hexdigest()
    notes = [f"{shown}, through {tokenizer.name} of {facts.num_ids:,} ids", *odd, *facts.notes(tokenizer.name, "files")]
    return replace(
        corpus, fingerprint=digest[:16], num_tokens=None, dtype="uint32", tokenizer=str(tokenizer), notes=tuple(notes),
        reading=Reading("text", "", "text"),
    )  # fmt: skip


def _text(source: Literal["python-stdlib", "text"], files: Sequence[Path], fingerprint: str, heldout: int) -> Corpus:
    """A corpus of bytes."""
    num_bytes = sum(path.stat().st_size for path in files)
    return Corpus(
        source=source,
        files=tuple(map(str, files)),
        fingerprint=fingerprint[:16],
        num_tokens=num_bytes,
        num_bytes=num_bytes,
        heldout_tokens=heldout,
        dtype="uint8",
        tokenizer=None,
        reading=Reading("text", "", "bytes"),
    )


def _token_corpus(
    path: Path, heldout_tokens: int, vocab_size: int, *, dtype: str | None = None, num_tokens: int | None = None
) -> Corpus:
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        if num_tokens is None:
            raise DataError(
                f"data.path: {path}: no such file; to plan a sweep before it exists, give data.num_tokens"
            ) from None
        return _absent_token_corpus(path, heldout_tokens, dtype, num_tokens, vocab_size)
    except OSError as error:
        raise DataError(f"data.path: {path}: {error.strerror}") from None
    layout = read_layout(path, dtype, vocab_size)
    if num_tokens not in (None, layout.num_ids):
        raise DataError(f"data.path: {path} holds {layout.num_ids} ids; the spec says data.num_tokens: {num_tokens}")
    (digest,) = file_digests([path])
    ends = index_of(path) if layout.format == "megatron" else path.with_suffix(".ends")
    return Corpus(
        source="tokens",
        files=(str(path),),
        fingerprint=digest.hex()[:16],
        num_tokens=layout.num_ids,
        num_bytes=num_bytes,
        heldout_tokens=heldout_tokens,
        dtype=layout.dtype,
        tokenizer=None,
        format=layout.format,
        offset=layout.offset,
        notes=(
            f"{path.name}: {layout.num_ids:,} ids of {layout.dtype}, known by {layout.known_by}",
            f"{path.name}: compared by {_compared(num_bytes)} when a sweep goes on",
            *layout.odd,
            *note_repeated_end(path, layout, heldout_tokens),
        ),
        ends=str(ends) if ends is not None and ends.is_file() else None,
    )


def _document_corpus(data: FilesData | FolderData | HfData | LlmcData, base: Path, vocab_size: int) -> Corpus:
    """A corpus of documents that are read, and written as one file of ids, before they are trained on."""
    files, digest, copies = _document_files(data, base)
    kind: Kind = "arrow" if isinstance(data, HfData) else data.source
    column = "" if isinstance(data, LlmcData) else data.column
    tokenizer = None if isinstance(data, LlmcData) or data.tokenizer is None else base / data.tokenizer
    holds = source_of(kind).look(files, column)
    if holds == "ids" and tokenizer is not None:
        raise DataError(f"data.tokenizer: {column!r} holds token ids already; leave data.tokenizer out")
    if holds == "text" and tokenizer is None:
        holds = "bytes"
    mark = None
    if not isinstance(data, LlmcData) and data.end_of_document is not None:
        mark = end_of_document(data.end_of_document, tokenizer, vocab_size)
    reading = Reading(kind, column, holds, mark)
    num_bytes = sum(path.stat().st_size for path in files)
    what = {"bytes": "a byte an id", "ids": "ids", "text": "text"}[holds]
    of_column = f", column {column!r}: {what}" if column else ""
    notes = [f"{format_things(len(files), 'file')}, {num_bytes:,} bytes{of_column}"]
    digest.update(f"{kind}\0{column}\0{holds}\0{mark}\0".encode())
    if tokenizer is not None:
        facts = read_tokenizer_file(tokenizer, vocab_size)
        digest.update(tokenizer.read_bytes())
        notes += [f"through {tokenizer.name} of {facts.num_ids:,} ids", *facts.notes(tokenizer.name, "documents")]
    notes += copies
    if column:
        notes.append("no mark between documents" if mark is None else f"id {mark} after each document")
    return Corpus(
        source=data.source,
        files=tuple(map(str, files)),
        fingerprint=digest.hexdigest()[:16],
        num_tokens=None,
        num_bytes=num_bytes,
        heldout_tokens=data.heldout_tokens,
        dtype="uint8" if holds == "bytes" and (mark or 0) < 256 else "uint32",
        tokenizer=None if tokenizer is None else str(tokenizer),
        notes=tuple(notes),
        reading=reading,
    )


def _document_files(
    data: FilesData | FolderData | HfData | LlmcData, base: Path
) -> tuple[list[Path], hashlib._Hash, tuple[str, ...]]:
    """The files in the order in which their documents follow each other, a hash of their content, and what is odd."""
    if isinstance(data, FilesData):
        found = by_content(text_files(data.paths, base))
        copies = note_copies(found, data.heldout_tokens)
        return list(found.paths), hashlib.sha256(found.fingerprint.encode()), copies
    if isinstance(data, LlmcData):
        files = [path for _, path in sorted(text_files(data.paths, base), key=lambda named: named[0])]
    elif isinstance(data, FolderData):
        files = (mds if data.source == "mds" else litdata).files_of(base / data.path)
    else:
        files = files_of(base / data.path, data.split)
    return files, hashlib.sha256(b"".join(file_digests(files))), ()


def _compared(num_bytes: int) -> str:
    """How a sweep that goes on sees that a file is still the same, in words."""
    if num_bytes <= HASHED_WHOLE_BYTES:
        return "the SHA-256 of the whole"
    return f"size, time stamp and samples, for it has more than {format_bytes(HASHED_WHOLE_BYTES)},"


def _absent_token_corpus(
    path: Path, heldout_tokens: int, dtype: str | None, num_tokens: int, vocab_size: int
) -> Corpus:
    dtype = dtype or ("uint16" if vocab_size <= 1 << 16 else "int32")
    check_width(dtype, vocab_size)
    return Corpus(
        source="tokens",
        files=(str(path),),
        fingerprint=ABSENT,
        num_tokens=num_tokens,
        num_bytes=num_tokens * BYTES_PER_ID[dtype],
        heldout_tokens=heldout_tokens,
        dtype=dtype,
        tokenizer=None,
        notes=(f"{path.name}: absent; {num_tokens:,} ids of {dtype} are taken, until it says itself what it holds",),
    )


def former_corpus(corpus: Corpus, data: AnyData, base: Path, vocab_size: int) -> FormerCorpus | None:
    """What an earlier version of this package took a corpus for; None where that is the same.

    It named files by their path from the spec's folder, took ids for uint16 where nothing else was said, trained on
    llm.c's headers, and let a tokenizer cut and pad texts.
    """
    if isinstance(data, TextData):
        files, fingerprint = by_name(text_files(data.paths, base))
        fault = None
        if corpus.tokenizer is not None:
            tokenizer = Path(corpus.tokenizer)
            fingerprint = hashlib.sha256(fingerprint.encode() + tokenizer.read_bytes()).hexdigest()
            switched_off = read_tokenizer_file(tokenizer, vocab_size).switched_off
            fault = f"{' and '.join(switched_off)} of each text" if switched_off else None
        return FormerCorpus(replace(corpus, files=tuple(map(str, files)), fingerprint=fingerprint[:16]), fault)
    if isinstance(data, TokenData) and corpus.fingerprint != ABSENT:
        path = base / data.path
        _, fingerprint = by_name([(path.name, path)])
        former = replace(corpus, fingerprint=fingerprint[:16])
        read_as = data.dtype or "uint16"
        if corpus.format == "npy" or (corpus.format != "llm.c" and read_as == corpus.dtype):
            return FormerCorpus(former, None)
        wrong = replace(former, dtype=read_as, format="raw", offset=0)
        return FormerCorpus(wrong, f"{path.name} read as {read_as} from its first byte on")
    return None

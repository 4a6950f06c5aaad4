"""Documents of a piece as ids."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.corpus import Corpus
from flopsfit_ds.data.sources.reading import Batch, Ids, Piece, source_of
from flopsfit_ds.data.tokenizer_file import read_tokenizer_file, renumbered

_BYTE_ORDER_MARK = "\ufeff"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """Some documents.

    Attributes:
        ids: One document after the other.
        lengths: Ids of each document; None where documents are not known.
        num_bytes: Bytes of each document's text; None where it is known as ids only.
    """

    ids: np.ndarray
    lengths: np.ndarray | None
    num_bytes: np.ndarray | None = None


class Encoder:
    """Reads pieces of a corpus as ids of one type."""

    def __init__(self, corpus: Corpus, dtype: str, vocab_size: int) -> None:
        """Load the tokenizer, where there is one.

        Args:
            corpus: With a way of reading.
            dtype: Of the ids.
            vocab_size: Of the model.

        Raises:
            DataError: No tokenizer, or one that renumbers its tokens.
        """
        assert corpus.reading is not None
        self._reading = corpus.reading
        self._source = source_of(corpus.reading.kind)
        self._files = [Path(name) for name in corpus.files]
        self._dtype = dtype
        self._vocab_size = vocab_size
        self._mark = np.array([], dtype) if corpus.reading.end_of_document is None else np.array(
            [corpus.reading.end_of_document], dtype
        )  # fmt: skip
        self._tokenizer = None if corpus.tokenizer is None else load_tokenizer(corpus.tokenizer, vocab_size)

    def read(self, piece: Piece) -> Iterator[Encoded]:
        """The documents of a piece, a batch at a time.

        Raises:
            DataError: A document cannot be read, or an id is beyond the vocabulary.
        """
        for batch in self._source.read(self._files, self._reading, piece):
            yield self._marked(self._encoded(batch, piece))

    def _encoded(self, batch: Batch, piece: Piece) -> Encoded:
        if isinstance(batch, Ids):
            found = np.asarray(batch.values)
            self._check(found, piece)
            return Encoded(found.astype(self._dtype), None if batch.lengths is None else np.asarray(batch.lengths))
        if self._tokenizer is None:
            contents = [text.encode() if isinstance(text, str) else text for text in batch]
            ids = np.frombuffer(b"".join(contents), np.uint8).astype(self._dtype, copy=False)
            lengths = np.array([len(content) for content in contents])
            return Encoded(ids, lengths, lengths)
        marked = sum(text.startswith(_BYTE_ORDER_MARK) for text in batch if isinstance(text, str))
        if marked:
            _log.warning("data.paths: %d texts begin with a byte-order mark, which is tokenised as text", marked)
        lists = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(batch)]
        lengths = np.array([len(ids) for ids in lists])
        num_bytes = np.array([len(text.encode()) if isinstance(text, str) else len(text) for text in batch])
        return Encoded(np.fromiter(chain.from_iterable(lists), self._dtype, int(lengths.sum())), lengths, num_bytes)

    def _marked(self, found: Encoded) -> Encoded:
        """With the end of each document marked."""
        if not len(self._mark) or found.lengths is None:
            return found
        ends = np.cumsum(found.lengths)
        return Encoded(np.insert(found.ids, ends, self._mark[0]), found.lengths + 1, found.num_bytes)

    def _check(self, ids: np.ndarray, piece: Piece) -> None:
        if len(ids) and (ids.min() < 0 or ids.max() >= self._vocab_size):
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise DataError(
                f"{self._files[piece.file]}: id {wrong} is no id of model.vocab_size {self._vocab_size}; set that to "
                f"{wrong + 1} or more, or name another column"
                if wrong >= 0
                else f"{self._files[piece.file]}: id {wrong} is negative; write the data without such marks"
            )


def load_tokenizer(path: str, vocab_size: int) -> Any:
    """A tokenizer that neither cuts texts, nor pads them, nor drops merges.

    Raises:
        DataError: No tokenizer, or one that renumbers its tokens.
    """
    from tokenizers import Tokenizer

    read_tokenizer_file(Path(path), vocab_size)
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing more special
        raise DataError(f"data.tokenizer: {path} is no tokenizer.json: {error}") from None
    _see_that_ids_are_kept(Path(path), tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def _see_that_ids_are_kept(path: Path, tokenizer: Any) -> None:
    """See that the library gives every added token the id that the file says.

    Raises:
        DataError: It does not.
    """
    saved = json.loads(path.read_bytes())
    stated = [(token["content"], token["id"]) for token in saved.get("added_tokens") or ()]
    moved = [(content, number, tokenizer.token_to_id(content)) for content, number in stated]
    moved = [token for token in moved if token[1] != token[2]]
    if moved:
        raise renumbered(path, moved)

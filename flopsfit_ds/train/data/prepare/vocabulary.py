"""Whether a tokenizer was made for its texts: what it leaves out of them without a word, or does not know."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.corpus import Corpus
from flopsfit_ds.data.sources.reading import BATCH_CHARACTERS, Ids, Piece, source_of
from flopsfit_ds.train.data.prepare.encode import load_tokenizer

_LOOKED_AT = 16  # pieces, evenly spread, and of each the first documents: some seconds. Chosen
_MOST_MISSING = 0.02
"""Of the characters left out, or of the pieces unknown: a tokenizer of another language leaves out far more, one that
fits its texts far less (stray characters). Chosen."""
_SHOWN = 8  # characters, in an error of one line

_log = logging.getLogger(__name__)


def check_vocabulary(corpus: Corpus, pieces: Sequence[Piece], vocab_size: int) -> None:
    """See, on samples of the texts, that a tokenizer keeps them; stray characters that it does not are warned of.

    Args:
        corpus: With a way of reading.
        pieces: Of it.
        vocab_size: Of the model.

    Raises:
        DataError: It cannot cut them up, leaves more than 2% of the characters out, or knows fewer than 98% of the
            pieces.
    """
    if corpus.tokenizer is None or not pieces:
        return
    found = _Missing(corpus.tokenizer, load_tokenizer(corpus.tokenizer, vocab_size))
    count = min(len(pieces), _LOOKED_AT)
    for number in range(count):
        for text in _first_texts(corpus, pieces[number * (len(pieces) - 1) // max(count - 1, 1)]):
            found.look(text)
    found.conclude()


def _first_texts(corpus: Corpus, piece: Piece) -> Iterator[str]:
    assert corpus.reading is not None
    seen = 0
    for batch in source_of(corpus.reading.kind).read([Path(name) for name in corpus.files], corpus.reading, piece):
        if isinstance(batch, Ids):
            return
        for text in batch:
            if isinstance(text, str):
                yield text[: BATCH_CHARACTERS - seen]
                seen += len(text)
            if seen >= BATCH_CHARACTERS:
                return


class _Missing:
    """Counts characters that a tokenizer leaves out, and ids that stand for what it does not know."""

    def __init__(self, path: str, tokenizer: Any) -> None:
        self._path, self._tokenizer = path, tokenizer
        model = json.loads(Path(path).read_bytes())["model"]
        named = model.get("unk_token")
        self._unknown = model.get("unk_id") if named is None else tokenizer.token_to_id(named)
        self._left_out: dict[str, bool] = {}
        self._lost: dict[str, int] = {}
        self._num_characters = self._num_ids = self._num_unknown = 0

    def look(self, text: str) -> None:
        """Note what of a text is not in its ids."""
        try:
            ids = self._tokenizer.encode(text).ids
        except Exception as error:  # the library raises nothing more special
            raise DataError(f"data.tokenizer: {self._path} cannot cut the texts up: {error}") from None
        self._num_characters += len(text)
        self._num_ids += len(ids)
        if self._unknown is not None:
            self._num_unknown += ids.count(self._unknown)
        for character in set(text):
            if self._is_left_out(character):
                self._lost[character] = self._lost.get(character, 0) + text.count(character)

    def _is_left_out(self, character: str) -> bool:
        if character not in self._left_out:
            alone = self._tokenizer.encode(character, add_special_tokens=False).ids
            self._left_out[character] = not alone and not character.isspace()
        return self._left_out[character]

    def conclude(self) -> None:
        """Say what was left out.

        Raises:
            DataError: It is too much to call the ids the text's.
        """
        lost, said = sum(self._lost.values()), []
        if lost:
            shown = " ".join(map(repr, sorted(self._lost, key=lambda each: -self._lost[each])[:_SHOWN]))
            said.append(f"leaves {lost:,} of {self._num_characters:,} characters out without a word ({shown})")
        if self._num_unknown:
            said.append(f"does not know {self._num_unknown:,} of {self._num_ids:,} pieces")
        if not said:
            return
        problem = f"data.tokenizer: {self._path} {' and '.join(said)} of the texts looked at"
        if lost > _MOST_MISSING * self._num_characters or self._num_unknown > _MOST_MISSING * self._num_ids:
            raise DataError(f"{problem}; take one that was made for such texts, or one of bytes")
        _log.warning("%s", problem)

"""What a `tokenizer.json` says of itself: how many ids, which gaps, and what it does to a text beside cutting it up.

Read as JSON, without the library that applies it: a plan must refuse at once what would train on other ids than meant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.base.text import shown

_SHOWN = 3  # in an error of one line
_MOST_IDS = 1 << 32
"""The library counts ids in 32 bits."""
_SPACE = "\u2581"
"""By which SentencePiece's tokenizers stand for a space, and put it back."""
_LOSSY_NORMALIZERS = {
    "Lowercase": "writes capitals small",
    "StripAccents": "takes accents off",
    "Strip": "strips white space at the ends",
    "NFKC": "folds characters that look alike (NFKC)",
    "NFKD": "folds characters that look alike (NFKD)",
    "Precompiled": "folds characters by a table of its own",
}
_MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)
"""What Python says of JSON of another shape than meant."""


@dataclass(frozen=True)
class TokenizerFacts:
    """What a plan says of a tokenizer.

    Attributes:
        num_ids: Largest id, plus one.
        switched_off: What the file asks for and training data must not have, in words: truncation, padding, dropout.
        added_to_each_text: Special tokens that are put before or after each text.
        lost: What its normaliser and its splitting leave out of a text, in words: capitals, accents, white space.
    """

    num_ids: int
    switched_off: tuple[str, ...]
    added_to_each_text: tuple[str, ...]
    lost: tuple[str, ...] = ()

    def notes(self, name: str, texts: str) -> list[str]:
        """What a plan says of a tokenizer, beside its size."""
        notes = []
        if self.switched_off:
            notes.append(f"{name} asks for {' and '.join(self.switched_off)}: switched off, all text is kept")
        if self.added_to_each_text:
            notes.append(f"{name} adds {' '.join(self.added_to_each_text)} to each of the {texts}: kept")
        if self.lost:
            notes.append(
                f"{name} {', '.join(self.lost)}: its ids do not hold all of a text, and a loss in bits a byte, which "
                "counts the text as it was, is lower for it than with a tokenizer that keeps all"
            )
        return notes


def read_tokenizer_file(path: Path, vocab_size: int) -> TokenizerFacts:
    """Read a `tokenizer.json`.

    Args:
        path: The file.
        vocab_size: Of the model.

    Raises:
        DataError: No such file, no tokenizer, more ids than the vocabulary, or added tokens that the library renumbers.
    """
    saved, ids, added = _load(path)
    largest = max((*ids.values(), *(number for _, number in added)))
    _check_added(path, ids, added)
    if largest >= vocab_size:
        raise DataError(
            f"data.tokenizer: {path} has {largest + 1} ids, more than model.vocab_size {vocab_size}; set that to "
            f"{largest + 1} or more"
        )
    try:
        return TokenizerFacts(
            num_ids=largest + 1,
            switched_off=tuple(_switched_off(saved)),
            added_to_each_text=tuple(map(_word, _specials(saved.get("post_processor")))),
            lost=tuple(dict.fromkeys((*_normalised(saved.get("normalizer")), *_split(saved.get("pre_tokenizer"))))),
        )
    except _MALFORMED as error:
        raise _no_tokenizer(path, error) from None


def _no_tokenizer(path: Path, error: Exception) -> DataError:
    """What a user is told of a file of another shape than meant."""
    return DataError(f"data.tokenizer: {path} is no tokenizer.json: {type(error).__name__}: {shown(str(error))[1:-1]}")


def _load(path: Path) -> tuple[Any, dict[str, int], list[tuple[str, int]]]:
    """The file's content, its vocabulary, and its added tokens.

    Raises:
        DataError: No such file, or no tokenizer.
    """
    try:
        saved = json.loads(path.read_bytes())
        vocab = saved["model"]["vocab"]
        entries = vocab.items() if isinstance(vocab, dict) else ((entry[0], n) for n, entry in enumerate(vocab))
        ids = {token: _id(number) for token, number in entries}
        if not ids:
            raise ValueError("its vocabulary is empty")
        added = [(str(token["content"]), _id(token["id"])) for token in saved.get("added_tokens") or ()]
        return saved, ids, added
    except OSError as error:
        raise DataError(f"data.tokenizer: {path}: {error.strerror or error}; it takes a tokenizer.json") from None
    except _MALFORMED as error:
        raise _no_tokenizer(path, error) from None


def _id(number: Any) -> int:
    if not isinstance(number, int) or not 0 <= number < _MOST_IDS:
        raise ValueError(f"{shown(number)} is no id")
    return number


def _word(value: Any) -> str:
    """A value of the file, fit to be shown; text without its quotes."""
    return shown(value)[1:-1] if isinstance(value, str) else shown(value)


def end_of_document(mark: str | int, tokenizer: Path | None, vocab_size: int) -> int:
    """The id that a spec's `data.end_of_document` stands for.

    Args:
        mark: A token of the tokenizer, or an id.
        tokenizer: The `tokenizer.json`, or None.
        vocab_size: Of the model.

    Raises:
        DataError: No such token, or an id beyond the vocabulary.
    """
    if isinstance(mark, int):
        if mark >= vocab_size:
            raise DataError(f"data.end_of_document: id {mark} is beyond model.vocab_size {vocab_size}")
        return mark
    if tokenizer is None:
        raise DataError(f"data.end_of_document: {mark!r} is a token, and there is no data.tokenizer; write an id")
    _, ids, added = _load(tokenizer)
    found = {**ids, **dict(added)}.get(mark)
    if found is None:
        near = ", ".join(_word(content) for content, _ in added[:_SHOWN]) or "none"
        raise DataError(
            f"data.end_of_document: {tokenizer} has no token {mark!r}; the tokens added to its vocabulary are {near}"
        )
    return found


def renumbered(path: Path, tokens: list[tuple[str, int, int | None]]) -> DataError:
    """What a user is told of added tokens (content, id in the file, id that the library gives)."""
    named = ", ".join(f"{shown(content)} is {stated} and becomes {given}" for content, stated, given in tokens[:_SHOWN])
    more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return DataError(
        f"data.tokenizer: {path}: its added tokens leave a gap in the ids, so that the library renumbers them: {named}"
        f"{more}; give the added tokens the ids that follow the vocabulary's, or fill the gap"
    )


def _check_added(path: Path, ids: Mapping[str, int], added: list[tuple[str, int]]) -> None:
    """The rule of tokenizers' `AddedVocabulary.add_tokens`: a known token keeps its id, another gets the next one."""
    given: dict[str, int] = {}
    moved: list[tuple[str, int, int | None]] = []
    for content, stated in added:
        highest = max(given.values(), default=-1)
        free = highest + 1 if highest >= len(ids) else len(ids)
        given[content] = ids[content] if content in ids else given.get(content, free)
        if given[content] != stated:
            moved.append((content, stated, given[content]))
    if moved:
        raise renumbered(path, moved)


def _switched_off(saved: Mapping[str, Any]) -> Iterator[str]:
    truncation, padding = saved.get("truncation"), saved.get("padding")
    if truncation:
        yield f"truncation to {_word(truncation.get('max_length'))} ids"
    if padding:
        yield f"padding ({_word(padding.get('strategy'))})"
    dropout = saved["model"].get("dropout")
    if dropout:
        yield f"dropout of {float(dropout):g} of the merges"


def _normalised(normalizer: Any) -> Iterator[str]:
    """What a normaliser takes from a text, by its kinds in the library; `NFC` and what is put back are no loss."""
    if not isinstance(normalizer, dict):
        return
    kind = normalizer.get("type")
    if kind == "Sequence":
        for part in normalizer.get("normalizers", ()):
            yield from _normalised(part)
    elif kind == "BertNormalizer":
        lowercase, accents = normalizer.get("lowercase"), normalizer.get("strip_accents")
        if lowercase:
            yield "writes capitals small"
        if accents or (accents is None and lowercase):
            yield "takes accents off"
    elif kind == "Replace" and normalizer.get("content") not in (_SPACE, "\n"):
        pattern = next(iter(dict(normalizer["pattern"]).values()), "")
        yield f"replaces {shown(pattern)} by {shown(normalizer.get('content'))}"
    elif kind in _LOSSY_NORMALIZERS:
        yield _LOSSY_NORMALIZERS[kind]


def _split(splitter: Any) -> Iterator[str]:
    """What is left out where a text is split, by the kinds in the library."""
    if not isinstance(splitter, dict):
        return
    kind = splitter.get("type")
    if kind == "Sequence":
        for part in splitter.get("pretokenizers", ()):
            yield from _split(part)
    elif kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer"):
        yield "leaves white space out"
    elif kind == "CharDelimiterSplit" or splitter.get("behavior") == "Removed":
        yield "leaves out what it splits at"


def _specials(processor: Any) -> Iterator[Any]:
    """Special tokens of a post-processor, by its kinds in the library."""
    if not isinstance(processor, dict):
        return
    if processor.get("type") == "Sequence":
        for part in processor.get("processors", ()):
            yield from _specials(part)
    elif processor.get("type") == "TemplateProcessing":
        for piece in processor.get("single", ()):
            if "SpecialToken" in piece:
                yield piece["SpecialToken"]["id"]
    elif processor.get("type") in ("BertProcessing", "RobertaProcessing"):
        yield from (processor[name][0] for name in ("cls", "sep") if name in processor)

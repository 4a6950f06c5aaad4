"""What a corpus must hold, and what two of them must not have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.corpus import Corpus


@contextmanager
def within(section: str) -> Iterator[None]:
    """Put a section of the spec before what is wrong with its data.

    Raises:
        DataError: Something is.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{section}: {error}") from None


def check_corpus(corpus: Corpus, context_length: int) -> None:
    """See that a corpus holds a sequence to train on and one to be measured on.

    Raises:
        DataError: It does not.
    """
    if corpus.source == "dataset":
        if corpus.heldout_tokens < 2 * context_length:
            raise DataError(
                "heldout_fraction: it holds out one sample, and a loss with a standard error needs 2 or more; raise "
                "heldout_fraction, or give an eval_dataset of 2 samples or more"
            )
        return
    if corpus.mixed:
        for source in corpus.mixed:
            with within(f"data.sources.{source.name}"):
                check_corpus(source.corpus, context_length)
    needed = context_length + 1
    if corpus.heldout_tokens < needed:
        raise DataError(
            f"data.heldout_tokens: {corpus.heldout_tokens} tokens do not hold one sequence of {context_length} tokens "
            f"and its last target; write {needed} or more"
        )
    for name, other in corpus.heldout_sets:
        held = other.heldout_tokens if other.num_tokens is None else min(other.num_tokens, other.heldout_tokens)
        if held < needed or (other.num_tokens is not None and other.num_tokens < other.heldout_tokens):
            raise DataError(
                f"heldout.{name}: {other.heldout_tokens} tokens are to be measured, and it has "
                f"{'as many' if other.num_tokens is None else other.num_tokens}; one sequence needs {needed}: write "
                "heldout_tokens between the two"
            )
    if corpus.training_tokens is not None and corpus.training_tokens < needed:
        raise DataError(
            f"data: {corpus.num_tokens} tokens less {corpus.heldout_tokens} held out leave "
            f"{max(corpus.training_tokens, 0)}, and one sequence needs {needed}; add data, lower "
            "data.heldout_tokens or shorten model.context_length"
        )


def shared_file(one: Corpus, other: Corpus) -> str | None:
    """A file that two corpora have in common, or None."""
    shared = {os.path.realpath(each) for each in one.files} & {os.path.realpath(each) for each in other.files}
    return min(shared, default=None)


def other_ids(one: Corpus, other: Corpus) -> tuple[str, str] | None:
    """Of two corpora whose ids stand for different texts, what they are; None where nothing says that they do."""
    made_here = [each.reading is not None and each.reading.holds != "ids" for each in (one, other)]
    if not all(made_here) or _tokenizer_of(one) == _tokenizer_of(other):
        return None
    first, second = (f"through {each.tokenizer}" if each.tokenizer else "bytes" for each in (one, other))
    return first, second


def _tokenizer_of(corpus: Corpus) -> bytes | None:
    return None if corpus.tokenizer is None else Path(corpus.tokenizer).read_bytes()

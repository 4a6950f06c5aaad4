"""Where the documents of a corpus end, and how much attention that stays within them sees. No torch, no numpy."""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flopsfit_ds.base.errors import PREPARE, DataError
from flopsfit_ds.data.corpus import Corpus
from flopsfit_ds.data.formats.megatron import read_bounds

_SAMPLED = 1 << 20  # documents: counting them takes a second
_BLOCKS = 256  # places of a sample, evenly spread


@dataclass(frozen=True)
class Documents:
    """What attention within documents sees.

    Attributes:
        keys: Of each window, how many tokens a query may see, as a mean over all that is trained on.
        digest: Of where all documents end.
        note: For plan and record.
    """

    keys: tuple[tuple[int, float], ...]
    digest: str
    note: str


def document_ends(place: Path) -> array[int]:
    """Ids up to the end of each document, as an `.ends` file or Megatron's index says.

    Raises:
        DataError: It is no such file.
    """
    if place.suffix == ".idx":
        return read_bounds(place)
    content = place.read_bytes()
    if len(content) % 16:
        raise DataError(f"{place} has {len(content)} bytes; it takes two int64 a document: ids and bytes up to its end")
    pairs = array("q", content)
    if sys.byteorder == "big":
        pairs.byteswap()
    return pairs[::2]


def look_at_documents(corpus: Corpus, context_length: int, windows: Sequence[int]) -> Documents:
    """How long the documents of a corpus are, cut by the sequences that are trained on.

    Args:
        corpus: What is trained on.
        context_length: Tokens a sequence.
        windows: How many tokens a query sees at most, in one layer or another.

    Raises:
        DataError: Where documents end is not known, or not of this data.
    """
    digest, keys, lengths = hashlib.sha256(), dict.fromkeys(windows, 0.0), []
    weights = [source.weight for source in corpus.mixed] or [1]
    for each, weight in zip(corpus.trained_on, weights, strict=True):
        ends = _ends_of(each)
        digest.update(struct.pack("<Q", len(ends)) + ends.tobytes())
        trained = (each.training_tokens or 0) // context_length * context_length
        seen = _seen(ends, trained, context_length, windows)
        for window in windows:
            keys[window] += seen[window] * weight / sum(weights)
        lengths.append(f"{len(ends):,} of {ends[-1] / len(ends):,.0f} tokens")
    for _, other in corpus.heldout_sets:
        digest.update(_ends_of(other).tobytes())
    told = ", ".join(f"{keys[window]:,.0f} of {window:,} tokens" for window in sorted(windows))
    note = f"attention stays within documents ({' and '.join(lengths)} on average): a query may see {told}"
    return Documents(tuple(sorted(keys.items())), digest.hexdigest()[:16], note)


def _ends_of(corpus: Corpus) -> array[int]:
    if corpus.ends is None:
        remedy = (
            f"{corpus.files[0]} says nothing of them: use a source of documents, or Megatron's .bin and .idx"
            if corpus.source == "tokens"
            else f"run `{PREPARE} model.attention_across_documents=true` first, which finds it"
        )
        raise DataError(f"model.attention_across_documents: where documents end is not known: {remedy}")
    ends = document_ends(Path(corpus.ends))
    if not ends or ends[-1] != corpus.num_tokens or any(map(int.__gt__, ends, ends[1:])):
        raise DataError(
            f"{corpus.ends}: the last document ends at {ends[-1] if ends else 0}, and {corpus.num_tokens} ids are "
            "there, or ends do not rise; it is of another file: write it again"
        )
    return ends


def _seen(ends: array[int], trained: int, context_length: int, windows: Sequence[int]) -> dict[int, float]:
    """Tokens that a query may see, as a mean: as many as its part of a document has, and no more than the window.

    Exact up to a million documents; of more, those of evenly spread blocks.
    """
    size, blocks = len(ends), 1 if len(ends) <= _SAMPLED else _BLOCKS
    length = size if blocks == 1 else _SAMPLED // _BLOCKS
    pairs, tokens = dict.fromkeys(windows, 0), 0
    for block in range(blocks):
        first = (size - length) * block // max(blocks - 1, 1)
        begin = ends[first - 1] if first else 0
        for end in ends[first : first + length]:
            begin, end = min(begin, trained), min(end, trained)
            whole = (end // context_length) - -(-begin // context_length)
            parts = (
                [(end - begin, 1)]
                if whole < 0
                else [(-begin % context_length, 1), (context_length, whole), (end % context_length, 1)]
            )
            for window in windows:
                pairs[window] += sum(number * part * min(part, window) for part, number in parts)
            tokens += end - begin
            begin = end
    return {window: pairs[window] / max(tokens, 1) for window in windows}

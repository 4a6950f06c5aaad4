"""Ids that are held out and stand in what is trained on as well: said, and nothing is said of a licence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.data.corpus import Corpus, find_corpus
from flopsfit_ds.spec import TokenData

HELD = 4096
DRAWN = np.random.default_rng(0).integers(0, 50_257, 60_000)


def corpus_of(folder: Path, ids: np.ndarray, dtype: str) -> Corpus:
    ids.astype(dtype).tofile(folder / "ids.bin")
    data = TokenData(source="tokens", path="ids.bin", heldout_tokens=HELD)  # pyright: ignore[reportCallIssue]
    return find_corpus(data, folder, 50_304)


def said_of(corpus: Corpus) -> list[str]:
    return [note for note in corpus.notes if "stand in what is trained on as well" in note]


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8"])
@pytest.mark.parametrize("copies", [np.tile(DRAWN[:1000], 60), np.concatenate([DRAWN, DRAWN[-20_000:]])])
def test_a_held_out_end_that_is_trained_on_is_told(tmp_path, dtype, copies):
    (said,) = said_of(corpus_of(tmp_path, copies, dtype))
    assert "8 of 8 passages of 64 ids, taken from the 4,096 that are held out" in said


def test_passages_that_a_corpus_repeats_here_and_there_are_none(tmp_path):
    """Three passages of eight, as of licences."""
    ids = DRAWN.copy()
    for number in range(3):
        start = len(ids) - HELD + number * ((HELD - 64) // 7)
        ids[1000 * number : 1000 * number + 64] = ids[start : start + 64]
    assert not said_of(corpus_of(tmp_path, ids, "<u2"))
    assert not said_of(corpus_of(tmp_path, DRAWN, "<u2"))

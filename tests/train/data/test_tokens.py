"""Token files: made once, checked against the vocabulary, cut into windows that never reach into the held-out tail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.corpus import find_corpus
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.spec import TextData, TokenData
from flopsfit_ds.train.data.token_file import TokenFile, prepare_tokens
from flopsfit_ds.train.data.tokens import TokenWorkload
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus


def prepared(base: Path, vocab_size: int = 256, folder: str = "data", **options) -> TokenFile:
    if "path" in options:
        corpus = find_corpus(TokenData(source="tokens", **options), base, vocab_size)
    else:
        corpus = find_corpus(TextData(source="text", paths=("corpus.txt",), **options), base, vocab_size)
    return prepare_tokens(corpus, base / folder, vocab_size)


def save_tokenizer(path: Path, vocab_size: int = 300) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the model learns tokens of scaling laws and loss. " * 50], trainer)
    tokenizer.save(str(path))
    return tokenizer


def test_bytes_are_their_own_ids(corpus_folder):
    tokens = prepared(corpus_folder)
    assert tokens.open().tobytes() == (corpus_folder / "corpus.txt").read_bytes()
    assert tokens.num_tokens == 200_000


def test_a_corpus_is_tokenised_once(corpus_folder):
    tokens = prepared(corpus_folder)
    before = Path(tokens.path).stat().st_mtime_ns
    assert prepared(corpus_folder) == tokens
    assert Path(tokens.path).stat().st_mtime_ns == before
    name = Path(tokens.path).stem
    assert sorted(path.name for path in (corpus_folder / "data").iterdir()) == [
        f"{name}{suffix}" for suffix in (".bin", ".ends", ".json")
    ]


def test_a_changed_corpus_is_another_file(corpus_folder):
    first = prepared(corpus_folder)
    write_bytes_corpus(corpus_folder / "corpus.txt", 100_000)
    assert prepared(corpus_folder).path != first.path
    assert prepared(corpus_folder).num_tokens == 100_000


class TestTokenizer:
    def test_a_tokenizer_json_gives_its_own_ids(self, corpus_folder):
        tokenizer = save_tokenizer(corpus_folder / "tok.json")
        tokens = prepared(corpus_folder, vocab_size=tokenizer.get_vocab_size(), tokenizer="tok.json")
        text = (corpus_folder / "corpus.txt").read_text()
        assert tokens.open().tolist() == tokenizer.encode(text).ids
        assert tokens.num_tokens < 200_000

    def test_a_vocabulary_smaller_than_the_tokenizers_is_refused_with_the_number(self, corpus_folder):
        tokenizer = save_tokenizer(corpus_folder / "tok.json")
        size = tokenizer.get_vocab_size()
        with pytest.raises(DataError, match=rf"has {size} ids, more than model.vocab_size {size - 1}"):
            prepared(corpus_folder, vocab_size=size - 1, tokenizer="tok.json")
        assert not list((corpus_folder / "data").glob("*")), "a refused corpus left a file behind"

    def test_a_larger_vocabulary_in_the_same_folder_reads_no_ids_of_another_type(self, corpus_folder):
        save_tokenizer(corpus_folder / "tok.json")
        small = prepared(corpus_folder, vocab_size=300, tokenizer="tok.json")
        large = prepared(corpus_folder, vocab_size=100_000, tokenizer="tok.json")
        assert (small.dtype, large.dtype) == ("uint16", "uint32")
        assert np.array_equal(small.open(), large.open())
        assert small.num_tokens == large.num_tokens

    def test_what_is_no_tokenizer_is_refused(self, corpus_folder):
        (corpus_folder / "tok.json").write_text('{"version": "1.0"}')
        with pytest.raises(DataError, match=r"tok.json is no tokenizer.json"):
            prepared(corpus_folder, tokenizer="tok.json")

    def test_a_text_that_is_no_utf8_is_refused_with_the_place(self, corpus_folder):
        save_tokenizer(corpus_folder / "tok.json")
        (corpus_folder / "corpus.txt").write_bytes(b"fine \xff\xfe not fine")
        with pytest.raises(DataError, match=r"corpus.txt: not UTF-8 \(invalid start byte at byte 5\)"):
            prepared(corpus_folder, vocab_size=300, tokenizer="tok.json")


class TestVocabulary:
    @pytest.mark.parametrize("name", ["ids.bin", "ids.npy"])
    def test_an_id_beyond_the_vocabulary_is_refused_with_its_place(self, tmp_path, name):
        ids = np.arange(400_000, dtype=np.uint32).astype(np.uint16) % 100  # too many for the samples to show it
        ids[3210] = 1000
        np.save(tmp_path / name, ids) if name.endswith("npy") else ids.tofile(tmp_path / name)
        with pytest.raises(DataError) as caught:
            prepared(tmp_path, vocab_size=1000, path=name)
        assert "id 1000 at position 3210 is beyond model.vocab_size 1000" in str(caught.value)
        assert "model.vocab_size to 1001 or more" in str(caught.value)
        assert prepared(tmp_path, vocab_size=1001, path=name).open()[3210] == 1000

    def test_the_wrong_type_of_a_bin_file_shows_in_its_ids(self, tmp_path):
        (np.arange(5000, dtype=np.uint16) % 100 + 1).tofile(tmp_path / "ids.bin")
        with pytest.raises(DataError, match=r"read as uint32, holds id \d+, .* check data.dtype"):
            prepared(tmp_path, vocab_size=200, path="ids.bin", dtype="uint32")

    def test_bytes_beyond_a_small_vocabulary_are_refused(self, corpus_folder):
        with pytest.raises(DataError, match=r"beyond model.vocab_size 100"):
            prepared(corpus_folder, vocab_size=100)


class TestWindows:
    @given(st.integers(1, 40), st.integers(2, 60), st.integers(1, 200))
    def test_windows_cover_the_training_part_once_and_never_reach_the_heldout_tail(self, context, heldout, extra):
        num_tokens = heldout + context + extra
        if heldout <= context:
            return
        tokens = _numbered(num_tokens, heldout)
        workload = TokenWorkload(_shape(context), tokens)
        inputs, targets = workload.training_batch(np.arange(workload.num_training_samples))
        assert inputs.flatten().tolist() == list(range(inputs.numel()))
        assert (targets - inputs == 1).all()
        assert targets.max() < num_tokens - heldout
        assert num_tokens - heldout - 1 - inputs.numel() < context  # nothing but a part of a window is left over
        held_inputs, held_targets = workload.heldout_batch(np.arange(workload.num_heldout_samples))
        assert held_inputs.min() == num_tokens - heldout
        assert held_targets.max() < num_tokens
        assert heldout - 1 - held_inputs.numel() < context

    def test_too_few_tokens_for_a_window_are_refused(self):
        with pytest.raises(DataError, match="do not give a sequence of 16 tokens to train on"):
            TokenWorkload(_shape(16), _numbered(116, 100))

    def test_a_plans_tokens_are_those_of_the_workload(self, corpus_folder):
        plan = plan_of(with_values(MICRO), corpus_folder)
        tokens = prepare_tokens(plan.corpus, corpus_folder / "data", 256)
        assert plan.runs[0].unique_tokens == tokens.num_tokens - tokens.heldout_tokens


def _shape(context: int) -> ModelShape:
    return ModelShape(1, 8, 1, 1, 8, 2**16, context)


class _Numbered(TokenFile):
    """Token n is the number n; needs no file."""

    def open(self) -> np.ndarray:
        return np.arange(self.num_tokens, dtype=np.uint32)


def _numbered(num_tokens: int, heldout: int) -> TokenFile:
    return _Numbered(f"numbered-{num_tokens}", "uint32", num_tokens, heldout)

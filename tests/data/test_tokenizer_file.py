"""A tokenizer file may cut, pad and renumber: nothing of that reaches the training data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.corpus import Corpus, find_corpus
from flopsfit_ds.data.tokenizer_file import read_tokenizer_file
from flopsfit_ds.spec import TextData
from flopsfit_ds.train.data.token_file import prepare_tokens
from helpers.sweeps import write_bytes_corpus


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_bytes_corpus(tmp_path / "corpus.txt", 20_000)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train([str(tmp_path / "corpus.txt")], trainer)
    return made


def found(base: Path, vocab_size: int = 400) -> Corpus:
    return find_corpus(TextData(source="text", paths=("corpus.txt",), tokenizer="tok.json"), base, vocab_size)


def ids_of(base: Path, tokenizer: Tokenizer) -> list[int]:
    tokenizer.save(str(base / "tok.json"))
    return prepare_tokens(found(base), base / "data", 400).open().tolist()


def test_truncation_and_padding_are_switched_off_and_said(tmp_path, tokenizer):
    whole = ids_of(tmp_path, tokenizer)
    assert len(whole) > 1000
    tokenizer.enable_truncation(512)
    assert ids_of(tmp_path, tokenizer) == whole
    assert any("truncation to 512 ids: switched off" in note for note in found(tmp_path).notes)
    tokenizer.no_truncation()
    tokenizer.enable_padding(length=30_000)
    assert ids_of(tmp_path, tokenizer) == whole
    assert any("padding" in note for note in found(tmp_path).notes)


def test_dropout_of_merges_is_switched_off_and_said(tmp_path, tokenizer):
    whole = ids_of(tmp_path, tokenizer)
    tokenizer.model.dropout = 0.5
    assert ids_of(tmp_path, tokenizer) == whole
    assert any("dropout of 0.5 of the merges: switched off" in note for note in found(tmp_path).notes)


class TestTextThatATokenizerDoesNotKnow:
    """The library leaves characters out without a word, or writes one id for whatever it does not know."""

    def made(self, folder: Path, strange: int, model: models.Model) -> None:
        (folder / "corpus.txt").write_text("loss batch " * 500 + "\u65e5" * strange, encoding="utf-8")
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tok.json"))
        prepare_tokens(found(folder), folder / "data", 400)

    def test_characters_that_are_left_out_are_counted_and_refused_where_many(self, tmp_path, caplog):
        letters = {letter: number for number, letter in enumerate("abchlost")}
        self.made(tmp_path, 60, models.BPE(vocab=letters, merges=[]))
        assert "leaves 60 of 5,560 characters out without a word ('\u65e5')" in caplog.text
        with pytest.raises(DataError, match=r"leaves 300 of 5,800 characters out .* made for such texts"):
            self.made(tmp_path, 300, models.BPE(vocab=letters, merges=[]))

    def test_unknown_pieces_are_counted_and_refused_where_many(self, tmp_path, caplog):
        self.made(tmp_path, 1, models.WordLevel({"[UNK]": 0, "loss": 1, "batch": 2}, unk_token="[UNK]"))
        assert "does not know 1 of 1,001 pieces" in caplog.text
        with pytest.raises(DataError, match="does not know 501 of 1,001 pieces"):
            self.made(tmp_path, 1, models.WordLevel({"[UNK]": 0, "loss": 1}, unk_token="[UNK]"))
        with pytest.raises(DataError, match=r"tok\.json cannot cut the texts up: .*UNK"):
            self.made(tmp_path, 1, models.WordLevel({"loss": 1}, unk_token="[UNK]"))


def test_special_tokens_of_each_text_are_kept_and_said(tmp_path, tokenizer):
    whole = ids_of(tmp_path, tokenizer)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    number = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    assert ids_of(tmp_path, tokenizer) == [number, *whole]
    assert any("adds <s> to each of the files" in note for note in found(tmp_path).notes)


LOSSY = [
    (normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]), None, "writes capitals small"),
    (normalizers.BertNormalizer(lowercase=True), None, "takes accents off"),
    (normalizers.Replace("import", ""), None, "replaces 'import' by ''"),
    (None, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit()]), "leaves white space out"),
    (None, pre_tokenizers.Split(";", "removed"), "leaves out what it splits at"),
    (normalizers.Replace(" ", "\u2581"), pre_tokenizers.ByteLevel(), None),
    (normalizers.NFC(), pre_tokenizers.Split(";", "isolated"), None),
]


@pytest.mark.parametrize(("normalizer", "splitter", "words"), LOSSY)
def test_what_a_tokenizer_takes_from_a_text_is_said_where_it_is_planned(
    tmp_path, tokenizer, normalizer, splitter, words
):
    """A text without capitals has fewer ids and a lower loss, of which bits a byte would tell nothing."""
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter or tokenizer.pre_tokenizer
    tokenizer.save(str(tmp_path / "tok.json"))
    said = [note for note in found(tmp_path).notes if "do not hold all of a text" in note]
    assert [words in note for note in said] == ([True] if words else [])


def test_a_gap_before_an_added_token_is_refused_with_both_ids(tmp_path, tokenizer):
    size = tokenizer.get_vocab_size()
    saved = json.loads(tokenizer.to_str())
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    for number, kept in ((size, True), (size + 100, False)):
        saved["added_tokens"] = [{"id": number, "content": "<|end|>", **flags}]
        (tmp_path / "tok.json").write_text(json.dumps(saved))
        assert (Tokenizer.from_file(str(tmp_path / "tok.json")).token_to_id("<|end|>") == number) == kept
        if kept:
            assert read_tokenizer_file(tmp_path / "tok.json", 1000).num_ids == size + 1
            continue
        with pytest.raises(DataError, match=rf"'<\|end\|>' is {number} and becomes {size}"):
            find_corpus(TextData(source="text", paths=("corpus.txt",), tokenizer="tok.json"), tmp_path, 1000)


def test_more_ids_than_the_vocabulary_are_refused_at_planning(tmp_path, tokenizer):
    tokenizer.save(str(tmp_path / "tok.json"))
    size = tokenizer.get_vocab_size()
    with pytest.raises(DataError, match=rf"has {size} ids, more than model.vocab_size {size - 1}; set that to {size}"):
        found(tmp_path, size - 1)
    assert found(tmp_path, size).num_tokens is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"vocab": 3}}', '{"model": {"vocab": {"a": "b"}}}'])
def test_what_is_no_tokenizer_is_refused_at_planning(tmp_path, content):
    write_bytes_corpus(tmp_path / "corpus.txt", 2000)
    (tmp_path / "tok.json").write_text(content)
    with pytest.raises(DataError, match=r"tok.json is no tokenizer.json"):
        found(tmp_path)


def hostile(**parts: object) -> str:
    return json.dumps({"model": {"vocab": {"loss": 0, "batch": 1}}, **parts})


ESCAPES = "\x1b]0;owned\x07\x1b[2J\n\u202e"
HOSTILE = {
    "nested too deep": "[" * 100_000,
    "an infinite id": '{"model": {"vocab": {"a": 1e999}}}',
    "a negative id": '{"model": {"vocab": {"a": -5}}}',
    "an id of 300 digits": f'{{"model": {{"vocab": {{"a": 1{"0" * 300}}}}}}}',
    "an id of 5,000 digits": f'{{"model": {{"vocab": {{"a": 1{"0" * 5000}}}}}}}',
    "no id": '{"model": {"vocab": {}}}',
    "truncation that is a list": hostile(truncation=[1]),
    "dropout that is text": '{"model": {"vocab": {"a": 1}, "dropout": "x"}}',
    "a processor of no parts": hostile(post_processor={"type": "Sequence", "processors": 5}),
    "a template of numbers": hostile(post_processor={"type": "TemplateProcessing", "single": [5]}),
    "marks that are none": hostile(post_processor={"type": "BertProcessing", "cls": [], "sep": 5}),
    "an added token of escapes": hostile(added_tokens=[{"id": 99, "content": ESCAPES}]),
    "an added token without end": hostile(added_tokens=[{"id": 99, "content": "x" * 100_000}]),
    "half a character": '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 9, "content": "\\ud800"}]}',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_in_one_short_line_that_no_terminal_obeys(tmp_path, faults, content):
    faults.inject("hostile tokenizer.json")
    write_bytes_corpus(tmp_path / "corpus.txt", 2000)
    (tmp_path / "tok.json").write_text(content)
    with pytest.raises(DataError) as refusal:
        found(tmp_path)
    told = str(refusal.value).replace(str(tmp_path), "")
    assert told.isprintable()
    assert len(told) < 300
    faults.cost("hostile tokenizer.json", 0, allowed=0)


def test_what_a_plan_says_of_a_tokenizer_holds_nothing_that_a_terminal_obeys(tmp_path, tokenizer):
    saved = json.loads(tokenizer.to_str())
    saved["padding"], saved["truncation"] = {"strategy": ESCAPES}, {"max_length": ESCAPES}
    saved["post_processor"] = {"type": "BertProcessing", "cls": [ESCAPES, 0], "sep": ["x" * 10_000, 1]}
    (tmp_path / "tok.json").write_text(json.dumps(saved))
    notes = found(tmp_path).notes
    assert all(note.isprintable() and len(note) < 600 for note in notes)
    assert any("truncation" in note and "\\x1b" in note for note in notes)

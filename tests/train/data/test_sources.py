"""Sources of documents: the same documents give the same ids, whatever they are kept in; what is wrong is named."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.sources import jsonl
from flopsfit_ds.spec import validate_spec
from flopsfit_ds.study.steps import build_plan, run_sweep
from flopsfit_ds.train.data.prepare.parts import read_ends
from flopsfit_ds.train.data.token_file import TokenFile, prepare_tokens
from helpers.documents import texts, write_dataset, write_jsonl, write_llmc, write_megatron, write_parquet, write_saved
from helpers.sweeps import MACHINE, MICRO, with_values

DOCUMENTS = texts()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The same documents, as text and as ids, in every format."""
    base = tmp_path_factory.mktemp("documents")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], show_progress=False)
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    tokenizer.save(str(base / "tok.json"))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(DOCUMENTS)]
    rows = [{"text": text, "ids": found} for text, found in zip(DOCUMENTS, ids, strict=True)]
    columns = {"text": DOCUMENTS, "ids": ids}
    (base / "zipped.jsonl.gz").write_bytes(gzip.compress(write_jsonl(base / "lines.jsonl", rows).read_bytes()))
    write_parquet(base / "rows.parquet", columns)
    write_dataset(base / "saved", columns)
    write_saved(base / "splits", {"train": DOCUMENTS, "test": DOCUMENTS[:3]})
    write_megatron(base / "pair", [np.array(each) for each in ids])
    write_llmc(base / "shard_1.bin", np.concatenate(ids[:100]))
    write_llmc(base / "shard_2.bin", np.concatenate(ids[100:]))
    return base


KEPT_IN: dict[str, dict[str, Any]] = {
    "jsonl": {"source": "jsonl", "paths": ["lines.jsonl"]},
    "jsonl.gz": {"source": "jsonl", "paths": ["zipped.jsonl.gz"]},
    "parquet": {"source": "parquet", "paths": ["*.parquet"]},
    "hf": {"source": "hf", "path": "saved"},
    "hf split": {"source": "hf", "path": "splits", "split": "train"},
}


def spec_values(data: dict[str, Any], vocab_size: int = 300) -> dict[str, Any]:
    return with_values(MICRO, data={"heldout_tokens": 1000, **data}, model__vocab_size=vocab_size)


def prepared(data: dict[str, Any], base: Path, work: Path, vocab_size: int = 300, **options: Any) -> TokenFile:
    spec = validate_spec(spec_values(data, vocab_size), "test")
    plan = build_plan(spec, spec_folder=base, machine=MACHINE)
    return prepare_tokens(plan.corpus, work, vocab_size, **options)


def refused(data: dict[str, Any], base: Path, vocab_size: int = 300) -> str:
    """What planning says of a source."""
    with pytest.raises(DataError) as caught:
        build_plan(validate_spec(spec_values(data, vocab_size), "test"), spec_folder=base, machine=MACHINE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of_the_library(base: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(base / "tok.json"))
    return [encoding.ids for encoding in tokenizer.encode_batch(DOCUMENTS)]


def flat(lists: Iterable[list[int]] | Iterable[bytes]) -> list[int]:
    return list(chain.from_iterable(lists))


def ends_of(tokens: TokenFile) -> list[int]:
    return read_ends(Path(tokens.path))[:, 0].tolist()


@pytest.mark.parametrize(
    ("kept_in", "column"),
    [*((each, "text") for each in KEPT_IN), *((each, "ids") for each in KEPT_IN if each != "hf split")],
)
def test_the_same_documents_give_the_same_ids_whatever_they_are_kept_in(kept_in, column, folder, tmp_path):
    data = {**KEPT_IN[kept_in], "column": column}
    tokens = prepared(data | ({"tokenizer": "tok.json"} if column == "text" else {}), folder, tmp_path)
    ids = of_the_library(folder)
    assert tokens.open().tolist() == flat(ids)
    assert tokens.dtype == "uint16"
    assert ends_of(tokens) == np.cumsum([len(each) for each in ids]).tolist()


@pytest.mark.parametrize(("end", "number"), [("<end>", 0), (299, 299)])
def test_the_end_of_each_document_is_marked_where_asked(end, number, folder, tmp_path):
    data = {**KEPT_IN["parquet"], "tokenizer": "tok.json", "end_of_document": end}
    tokens = prepared(data, folder, tmp_path)
    assert tokens.open().tolist() == flat([*each, number] for each in of_the_library(folder))
    assert all(tokens.open()[end - 1] == number for end in ends_of(tokens))


def test_without_a_tokenizer_a_byte_is_a_token_and_documents_end_on_a_byte(folder, tmp_path):
    tokens = prepared({**KEPT_IN["jsonl"], "end_of_document": 256}, folder, tmp_path, vocab_size=257)
    contents = [text.encode() for text in DOCUMENTS]
    assert tokens.open().tolist() == flat([*content, 256] for content in contents)
    assert prepared(KEPT_IN["jsonl"], folder, tmp_path, vocab_size=256).open().tobytes() == b"".join(contents)


def test_a_file_that_is_cut_in_many_pieces_by_several_processes_gives_the_same(folder, tmp_path, monkeypatch):
    whole = prepared({**KEPT_IN["jsonl"], "tokenizer": "tok.json"}, folder, tmp_path / "whole")
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(jsonl, "PIECE_BYTES", 3000)
    monkeypatch.setattr("flopsfit_ds.train.data.prepare.pool._WORTH_A_PROCESS", 0)
    data = {**KEPT_IN["jsonl"], "tokenizer": "tok.json"}
    cut = prepared(data, folder, tmp_path / "cut", workers=2, progress=lambda done, total: told.append((done, total)))
    assert len(told) > 10
    assert told[-1][0] == told[-1][1] == (folder / "lines.jsonl").stat().st_size
    assert [*cut.open()] == [*whole.open()]
    assert ends_of(cut) == ends_of(whole)
    assert [path.suffix for path in sorted((tmp_path / "cut").iterdir())] == [".bin", ".ends", ".json"]


def test_shards_of_llmc_follow_each_other_by_name_without_their_headers(folder, tmp_path):
    tokens = prepared({"source": "llm.c", "paths": ["shard_*.bin"]}, folder, tmp_path)
    assert tokens.open().tolist() == flat(of_the_library(folder))
    assert not Path(tokens.path).with_suffix(".ends").exists()


def test_a_pair_of_megatrons_is_read_in_place_and_is_the_same_corpus_as_its_bin(folder, tmp_path):
    for path in ("pair", "pair.bin", "pair.idx"):
        tokens = prepared({"source": "megatron", "path": path}, folder, tmp_path)
        assert tokens.path == str(folder / "pair.bin")
        assert tokens.open().tolist() == flat(of_the_library(folder))
    runs = [
        build_plan(validate_spec(spec_values(data), "test"), spec_folder=folder, machine=MACHINE).runs[0].run_id
        for data in ({"source": "megatron", "path": "pair"}, {"source": "tokens", "path": "pair.bin"})
    ]
    assert runs[0] == runs[1]


LINES, ROWS, SAVED = KEPT_IN["jsonl"], KEPT_IN["parquet"], KEPT_IN["hf"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        *(({**kept, "column": "txt"}, "has no column 'txt'; it has ids, text") for kept in (LINES, ROWS, SAVED)),
        ({**LINES, "column": "ids", "tokenizer": "tok.json"}, "'ids' holds token ids already; leave data.tok"),
        ({**LINES, "tokenizer": "no.json"}, "no.json: No such file"),
        ({**LINES, "end_of_document": "<end>"}, "'<end>' is a token, and there is no data.tokenizer; write an id"),
        ({**LINES, "tokenizer": "tok.json", "end_of_document": "<eos>"}, "has no token '<eos>'; .* are <end>"),
        ({**LINES, "end_of_document": 300}, "id 300 is beyond model.vocab_size 300"),
        ({**KEPT_IN["hf split"], "split": "valid"}, "has the splits train, test, and it has no split 'valid'"),
        ({**KEPT_IN["hf split"], "split": None}, "no split is named; name one"),
        ({**SAVED, "split": "train"}, "one dataset without splits; leave data.split out"),
        (
            {"source": "hf", "path": "someone/words"},
            r"words: no such folder, and nothing is fetched by name; save .*load_dataset.*save_to_disk.* that folder",
        ),
        ({"source": "hf", "path": "."}, "is no dataset that save_to_disk wrote"),
        ({"source": "megatron", "path": "shard_1"}, r"shard_1.idx: no such file; .* a .bin and an .idx"),
        ({"source": "llm.c", "paths": ["pair.bin"]}, "is no file of llm.c; data.source: tokens reads other files"),
        ({"source": "parquet", "paths": ["lines.jsonl"]}, "is no Parquet file, or ends early"),
        ({"source": "jsonl", "paths": ["rows.parquet"]}, "is no JSON"),
    ],
)  # fmt: skip
def test_what_planning_can_see_is_refused_before_anything_is_read(data, words, folder):
    assert re.search(words, refused(data, folder))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(folder):
    words = refused({**ROWS, "tokenizer": "tok.json"}, folder, vocab_size=20)
    assert "more than model.vocab_size 20; set that to" in words


@pytest.mark.parametrize("kept_in", ["jsonl", "parquet", "hf"])
def test_a_file_that_ends_early_is_refused(kept_in, folder, tmp_path):
    paths = {"jsonl": "lines.jsonl", "parquet": "rows.parquet", "hf": "saved/data-00001-of-00002.arrow"}
    (tmp_path / "saved").mkdir()
    for name in ("lines.jsonl", "rows.parquet", *(f"saved/{path.name}" for path in (folder / "saved").iterdir())):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    cut = tmp_path / paths[kept_in]
    cut.write_bytes(cut.read_bytes()[: -cut.stat().st_size // 3])
    assert "ends early" in refused(KEPT_IN[kept_in], tmp_path)
    if kept_in == "hf":
        cut.unlink()
        assert "there is no such file: the dataset ends early" in refused(KEPT_IN[kept_in], tmp_path)


def test_a_zipped_file_that_ends_early_is_refused_when_it_is_read(folder, tmp_path):
    content = (folder / "zipped.jsonl.gz").read_bytes()
    (tmp_path / "zipped.jsonl.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is damaged or ends early"):
        prepared(KEPT_IN["jsonl.gz"], tmp_path, tmp_path / "work")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a"}, {"text": 7}], "'text' holds text, and once int"),
        ([{"text": "a"}, {"title": "b"}], "the line at byte 14 has no column 'text'; it has title"),
        ([{"text": 1.5}], "'text' holds float; it takes text, or a list of integer token ids"),
        ([{"text": [1, 2]}, {"text": [300]}], "id 300 is no id of model.vocab_size 300; set that to 301 or more"),
        ([{"text": [1, 2]}, {"text": [-1]}], "id -1 is negative"),
        (["a"], "is no JSON object but str"),
    ],
)
def test_a_row_that_is_no_document_is_named(rows, words, tmp_path):
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=words):
        prepared(LINES, tmp_path, tmp_path / "work")


def test_rows_without_a_document_are_named(tmp_path):
    write_parquet(tmp_path / "rows.parquet", {"text": ["a", None, None]})
    with pytest.raises(DataError, match=r"2 rows have no 'text' \(null\)"):
        prepared(ROWS, tmp_path, tmp_path / "work")


def test_a_study_of_a_column_is_planned_trained_and_recorded(folder, tmp_path):
    values = with_values(
        spec_values({**KEPT_IN["parquet"], "tokenizer": "tok.json", "end_of_document": "<end>"}),
        output_root=str(tmp_path), hardware__gpus_per_node=1,
    )  # fmt: skip
    plan = build_plan(validate_spec(values, "test"), spec_folder=folder, machine=MACHINE)
    (record,) = run_sweep(plan)
    ids = flat([*each, 0] for each in of_the_library(folder))
    assert record.status == "completed"
    assert record.unique_tokens is not None
    assert len(ids) - 1000 - 16 <= record.unique_tokens <= len(ids) - 1000
    assert record.loss is not None
    assert record.loss < np.log(300) / 2
    assert any("column 'text': text" in note for note in record.data)
    again = build_plan(validate_spec(values, "test"), spec_folder=folder, machine=MACHINE)
    assert again.corpus.num_tokens == len(ids)
    assert [run.run_id for run in again.runs] == [run.run_id for run in plan.runs]

"""Further held-out sets: each a loss of its own, in nats and in bits a byte, and a law of its own."""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flopsfit_ds.base.errors import DataError, SpecError
from flopsfit_ds.fit import points_from_records
from flopsfit_ds.spec import validate_spec
from flopsfit_ds.study.steps import build_plan, conclude_sweep, run_sweep
from flopsfit_ds.train.data.prepare.parts import read_ends
from flopsfit_ds.train.data.token_file import prepare_tokens
from helpers.documents import texts, write_jsonl
from helpers.sweeps import MACHINE, MICRO, with_values, write_bytes_corpus

SETS = {
    "alike": {"source": "jsonl", "paths": ["alike.jsonl"], "heldout_tokens": 4096},
    "noise": {"source": "text", "paths": ["noise.txt"], "heldout_tokens": 2048},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("sets")
    content = write_bytes_corpus(base / "corpus.txt").read_text()
    write_jsonl(base / "alike.jsonl", [{"text": content[-start - 1 : -start - 700 : -1][::-1]} for start in range(20)])
    generator = random.Random(0)
    (base / "noise.txt").write_text("".join(chr(generator.randrange(33, 127)) for _ in range(10_000)))
    return base


def values(**changes: Any) -> dict[str, Any]:
    return with_values(MICRO, heldout=SETS, hardware__gpus_per_node=1, **changes)


def plan_of(spec: dict[str, Any], folder: Path) -> Any:
    return build_plan(validate_spec(spec, "test"), spec_folder=folder, machine=MACHINE)


def test_each_set_has_a_loss_of_its_own_and_a_fit_may_be_of_it(folder, tmp_path):
    plan = plan_of(values(output_root=str(tmp_path), fit={"bootstrap_samples": 0, "heldout": "noise"}), folder)
    (record,) = run_sweep(plan)
    assert record.loss is not None
    alike, noise = record.heldout["alike"], record.heldout["noise"]
    assert alike.loss == pytest.approx(record.loss, abs=0.3)
    assert noise.loss > math.log(94)  # bytes that nobody can foretell, by a model that has never seen them
    assert noise.loss_tokens == 2047 // 16 * 16
    assert noise.loss_standard_error > 0
    assert record.bits_per_byte == pytest.approx(record.loss / math.log(2))  # a byte a token
    assert noise.bits_per_byte == pytest.approx(noise.loss / math.log(2))
    (row,) = csv.DictReader((plan.folder / "results.csv").open())
    assert float(row["heldout_noise_loss"]) == noise.loss
    assert float(row["bits_per_byte"]) == record.bits_per_byte
    result = conclude_sweep(plan, [record])
    assert result.records[0].loss == noise.loss
    assert "on the held-out set noise" in result.report.read_text()
    assert points_from_records([record.judged_by("noise")]).points[0].loss == noise.loss
    (gone,) = points_from_records([record.judged_by("prose")]).excluded
    assert gone.reason == "completed without a loss on the held-out set prose"


def test_sets_are_part_of_what_a_run_is_and_no_sets_change_nothing(folder):
    without = with_values(values(), heldout=None)
    ids = [plan_of(spec, folder).runs[0].run_id for spec in (without, {**without, "heldout": {}}, values())]
    assert ids[0] == ids[1] != ids[2]
    one = values(heldout__noise={**SETS["noise"], "heldout_tokens": 1024})
    assert plan_of(one, folder).runs[0].run_id not in ids


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"mine": {"source": "text", "paths": ["corpus.txt"]}}, "heldout.mine: .*corpus.txt is trained on, too"),
        ({"gone": {"source": "text", "paths": ["gone.txt"]}}, "heldout.gone: data.paths: .*gone.txt: no such file"),
        ({"short": {"source": "text", "paths": ["noise.txt"], "heldout_tokens": 10}}, "one sequence needs 17"),
        ({"long": {"source": "text", "paths": ["noise.txt"]}}, "65536 tokens are to be measured, and it has 10000"),
    ],
)
def test_a_set_that_cannot_be_measured_is_refused(sets, words, folder):
    with pytest.raises(DataError, match=words):
        plan_of(values() | {"heldout": sets}, folder)


def test_a_set_through_another_tokenizer_or_of_no_name_is_refused(folder, tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(folder / "tok.json"))
    other = {"noise": {**SETS["noise"], "tokenizer": "tok.json"}}
    with pytest.raises(DataError, match=r"heldout.noise: its ids are through .*tok.json, and those of data are bytes"):
        plan_of(values() | {"heldout": other}, folder)
    with pytest.raises(SpecError, match=r"fit.heldout: 'prose' is no set of heldout; there is alike, noise"):
        validate_spec(values(fit={"heldout": "prose"}), "test")


def test_bytes_of_heldout_tokens_are_those_of_their_documents(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    documents = texts()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=60, show_progress=False))
    tokenizer.save(str(tmp_path / "tok.json"))
    write_jsonl(tmp_path / "lines.jsonl", [{"text": text} for text in documents])
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(documents)]
    for held, inside in ((sum(lengths[-50:]), False), (sum(lengths[-50:]) + 3, True)):
        data = {"source": "jsonl", "paths": ["lines.jsonl"], "tokenizer": "tok.json", "heldout_tokens": held}
        plan = plan_of(with_values(MICRO, data=data), tmp_path)
        tokens = prepare_tokens(plan.corpus, tmp_path / "work", 256)
        text_bytes = sum(len(text.encode()) for text in documents[-50:])
        assert tokens.bytes_per_token is not None
        found = tokens.bytes_per_token * held
        assert (text_bytes < found < text_bytes + 3 * 20) if inside else found == pytest.approx(text_bytes)
    assert read_ends(Path(tokens.path))[-1].tolist() == [sum(lengths), sum(len(each.encode()) for each in documents)]


def test_of_ids_alone_no_bytes_are_told(tmp_path):
    write_jsonl(tmp_path / "ids.jsonl", [{"ids": list(range(100))}] * 50)
    data = {"source": "jsonl", "paths": ["ids.jsonl"], "column": "ids", "heldout_tokens": 1000}
    plan = plan_of(with_values(MICRO, data=data), tmp_path)
    tokens = prepare_tokens(plan.corpus, tmp_path / "work", 256)
    assert tokens.bytes_per_token is None
    assert np.all(read_ends(Path(tokens.path))[:, 1] == -1)

"""`data prepare`: killed at any moment it goes on; what lies there is checked, and what cannot be used is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.spec import load_spec
from flopsfit_ds.study.steps import build_plan
from flopsfit_ds.train.data.prepare.pool import _held
from flopsfit_ds.train.data.token_file import prepare_tokens
from helpers.cli_in_process import invoke
from helpers.documents import texts, write_jsonl, write_parquet
from helpers.sweeps import MACHINE, MICRO, with_values

DOCUMENTS = texts()
KILLED = """
import os, signal, sys
from pathlib import Path
import psutil
from flopsfit_ds.spec import load_spec
from flopsfit_ds.study.steps import build_plan
from flopsfit_ds.train.data.prepare import pool
from flopsfit_ds.train.data.token_file import prepare_tokens

pool._WORTH_A_PROCESS = 0

def kill_halfway(done, total):
    if done > total / 2:
        print(*[child.pid for child in psutil.Process().children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

spec = Path(sys.argv[1])
corpus = build_plan(load_spec(spec), spec_folder=spec.parent).corpus
prepare_tokens(corpus, spec.parent / "work", 512, workers=int(sys.argv[2]), progress=kill_halfway)
"""


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    """A tokenizer that knows the documents' letters and some pairs of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(DOCUMENTS, trainers.BpeTrainer(vocab_size=60, show_progress=False))
    return tokenizer.to_str()


@pytest.fixture
def spec(tmp_path, tokenizer_json) -> Path:
    """A study of documents in 25 row groups, each of them a piece."""
    write_parquet(tmp_path / "rows.parquet", {"text": DOCUMENTS}, row_group_size=16)
    (tmp_path / "tok.json").write_text(tokenizer_json)
    data = {"source": "parquet", "paths": ["rows.parquet"], "tokenizer": "tok.json", "heldout_tokens": 1000}
    values = with_values(MICRO, data=data, model__vocab_size=512, output_root=str(tmp_path / "outputs"))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "spec.yaml"


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_kill_it_goes_on_with_what_lacks(workers, spec):
    corpus = build_plan(load_spec(spec), spec_folder=spec.parent, machine=MACHINE).corpus
    whole = prepare_tokens(corpus, spec.parent / "whole", 512).open()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(spec), str(workers)], capture_output=True, text=True, timeout=120
    )
    assert killed.returncode == -9, killed.stderr
    children = [psutil.Process(int(pid)) for pid in killed.stdout.split() if psutil.pid_exists(int(pid))]
    assert not psutil.wait_procs(children, timeout=60)[1], "a worker outlives its parent"
    work = spec.parent / "work"
    assert not list(work.glob("*.bin"))
    parts = sorted(work.glob("*-parts-*/*.json"))
    assert 12 <= len(parts) < 25
    damaged = parts[3].with_suffix(".bin")
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"\xff\xff")
    told: list[int] = []
    tokens = prepare_tokens(corpus, work, 512, progress=lambda done, total: told.append(done))
    assert len(told) == 1 + 25 - len(parts) + 1  # what lay there, then each that lacked, the damaged one among them
    assert np.array_equal(tokens.open(), whole)
    assert not list(work.glob("*-parts-*"))


def test_the_command_writes_the_file_that_the_sweep_reads(spec):
    code, text = invoke("data", "prepare", str(spec), "--workers", "1")
    assert code == 0
    assert "column 'text': text" in text
    (path,) = (spec.parent / "outputs").rglob("*.bin")
    manifest = json.loads(path.with_suffix(".json").read_text())["content"]
    said = f"{manifest['num_tokens']:,} ids of uint16 of 400 documents"
    assert said in " ".join(text.split())
    before = path.stat().st_mtime_ns
    plan = build_plan(load_spec(spec), spec_folder=spec.parent, machine=MACHINE)
    assert plan.runs[0].unique_tokens == manifest["num_tokens"] - 1000
    assert prepare_tokens(plan.corpus, plan.folder / "data", 512).path == str(path)
    assert path.stat().st_mtime_ns == before
    assert invoke("data", "prepare", str(spec))[0] == 0
    assert path.stat().st_mtime_ns == before


def test_two_at_once_are_refused(spec):
    corpus = build_plan(load_spec(spec), spec_folder=spec.parent, machine=MACHINE).corpus
    path = Path(prepare_tokens(corpus, spec.parent / "work", 512).path)
    folder = spec.parent / "held"
    folder.mkdir()
    with _held(folder, path), pytest.raises(DataError, match="another process prepares it"), _held(folder, path):
        pass


def test_what_is_wrong_in_a_worker_is_told_as_it_is(spec, monkeypatch):
    monkeypatch.setattr("flopsfit_ds.train.data.prepare.pool._WORTH_A_PROCESS", 0)
    write_parquet(spec.parent / "rows.parquet", {"text": [*DOCUMENTS, None]}, row_group_size=16)
    corpus = build_plan(load_spec(spec), spec_folder=spec.parent, machine=MACHINE).corpus
    with pytest.raises(DataError, match=r"rows.parquet: 1 rows have no 'text' \(null\)"):
        prepare_tokens(corpus, spec.parent / "work", 512, workers=2)


def test_a_worker_that_dies_is_told(spec, monkeypatch):
    monkeypatch.setattr("flopsfit_ds.train.data.prepare.pool._WORTH_A_PROCESS", 0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    corpus = build_plan(load_spec(spec), spec_folder=spec.parent, machine=MACHINE).corpus
    with pytest.raises(DataError, match="ended with code 1; see the output above"):
        prepare_tokens(corpus, spec.parent / "work", 512, workers=2)


def test_ids_that_are_read_in_place_need_no_preparing(tmp_path):
    np.zeros(5000, "<u2").tofile(tmp_path / "ids.bin")
    data = {"source": "tokens", "path": "ids.bin", "dtype": "uint16", "heldout_tokens": 1000}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(with_values(MICRO, data=data)))
    code, text = invoke("data", "prepare", str(tmp_path / "spec.yaml"))
    assert code == 2
    assert "ids.bin is read in place: there is nothing to prepare" in " ".join(text.split())


def test_heldout_sets_are_prepared_too(spec):
    write_jsonl(spec.parent / "set.jsonl", [{"text": text} for text in texts(50, seed=1)])
    heldout = {"other": {"source": "jsonl", "paths": ["set.jsonl"], "tokenizer": "tok.json", "heldout_tokens": 500}}
    spec.write_text(yaml.safe_dump(yaml.safe_load(spec.read_text()) | {"heldout": heldout}))
    code, text = invoke("data", "prepare", str(spec))
    assert code == 0, text
    assert "of 400 documents" in text
    assert "of 50 documents" in text
    assert len(list((spec.parent / "outputs").rglob("*.bin"))) == 2


def test_lines_of_ids_are_prepared_without_a_tokenizer(tmp_path):
    write_jsonl(tmp_path / "ids.jsonl", [{"ids": list(range(number))} for number in range(1, 100)])
    data = {"source": "jsonl", "paths": ["ids.jsonl"], "column": "ids", "heldout_tokens": 1000}
    values = with_values(MICRO, data=data, output_root=str(tmp_path / "outputs"))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))
    code, text = invoke("data", "prepare", str(tmp_path / "spec.yaml"))
    assert code == 0, text
    assert "4,950 ids of uint16 of 99 documents" in " ".join(text.split())

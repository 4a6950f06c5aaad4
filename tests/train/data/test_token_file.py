"""A file of ids is known by its manifest: what was altered is not trained on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.base.errors import DataChangedError, DataError
from flopsfit_ds.base.storage import read_json
from flopsfit_ds.data import manifest as manifest_module
from flopsfit_ds.data.corpus import Corpus, find_corpus
from flopsfit_ds.data.manifest import watched_files
from flopsfit_ds.spec import TextData, TokenData
from flopsfit_ds.study.steps import run_sweep
from flopsfit_ds.train.data.token_file import TokenFile, prepare_tokens
from flopsfit_ds.train.order import EXIT_FAILED
from helpers.sweeps import MICRO, plan_of, with_values
from helpers.train.kill_targets import survives
from helpers.train.ranks import SHORT, Layout, start, workload_of


def text(base: Path) -> Corpus:
    return find_corpus(TextData(source="text", paths=("corpus.txt",)), base, 256)


def prepared(base: Path) -> TokenFile:
    return prepare_tokens(text(base), base / "data", 256)


def rewrite(path: Path) -> None:
    """Other content, the same size."""
    path.write_bytes(bytes(10) + path.read_bytes()[10:])


def alter(path: Path, position: int = 5000) -> None:
    """Other content, the same size and time stamp."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


class TestTheFileThatWeWrite:
    def test_one_that_was_cut_or_altered_is_written_anew_and_that_is_said(self, corpus_folder, caplog):
        whole = (corpus_folder / "corpus.txt").read_bytes()
        path = Path(prepared(corpus_folder).path)
        for harm in (alter, lambda path: os.truncate(path, 100_000), lambda path: path.with_suffix(".json").unlink()):
            caplog.clear()
            harm(path)
            assert prepared(corpus_folder).open().tobytes() == whole == path.read_bytes()
            assert "is not trusted" in caplog.text
        caplog.clear()
        assert prepared(corpus_folder).num_tokens == len(whole)
        assert "is not trusted" not in caplog.text

    def test_a_damaged_manifest_and_one_of_another_corpus_are_no_witness(self, corpus_folder):
        path = Path(prepared(corpus_folder).path)
        path.with_suffix(".json").write_text("{")
        alter(path)
        assert prepared(corpus_folder).open().tobytes() == (corpus_folder / "corpus.txt").read_bytes()
        alter(corpus_folder / "corpus.txt")
        other = Path(prepared(corpus_folder).path)
        for suffix in (".bin", ".json"):
            other.with_suffix(suffix).write_bytes(path.with_suffix(suffix).read_bytes())
        assert prepared(corpus_folder).open().tobytes() == (corpus_folder / "corpus.txt").read_bytes()

    def test_what_a_killed_driver_left_is_removed_and_never_used(self, corpus_folder):
        name = f"tokens-{text(corpus_folder).fingerprint}-uint8.bin"
        (corpus_folder / "data").mkdir()
        (corpus_folder / "data" / f".{name}.999999.tmp").write_bytes(b"half")
        assert prepared(corpus_folder).num_tokens == 200_000
        assert not list((corpus_folder / "data").glob(".*"))

    def test_a_kill_at_any_step_of_the_write_leaves_nothing_that_is_trained_on(self, corpus_folder):
        """A process ends by SIGKILL before one of its steps on the file system, before the next in the next folder."""
        whole, corpus, steps = (corpus_folder / "corpus.txt").read_bytes(), text(corpus_folder), 0
        while True:
            steps += 1
            folder = corpus_folder / f"killed-{steps}"
            survived = survives(steps, lambda folder=folder: prepare_tokens(corpus, folder, 256))
            tokens = prepare_tokens(corpus, folder, 256)
            assert tokens.open().tobytes() == whole, steps
            assert not list(folder.glob(".*.bin.*")), steps
            if survived:
                break
        assert steps > 10

    def test_a_huge_one_is_compared_by_samples_and_after_a_copy_by_the_whole(self, corpus_folder, monkeypatch, caplog):
        caplog.set_level("INFO")
        monkeypatch.setattr(manifest_module, "HASHED_WHOLE_BYTES", 1000)
        path = Path(prepared(corpus_folder).path)
        prepared(corpus_folder)
        assert "by size, time stamp and 1024 samples" in caplog.text
        os.utime(path, ns=(0, 0))
        prepared(corpus_folder)
        assert "by the SHA-256 of the whole" in caplog.text
        assert "is not trusted" not in caplog.text


def test_text_that_is_altered_while_it_is_read_is_named(corpus_folder):
    def edit(done, total):
        rewrite(corpus_folder / "corpus.txt")

    with pytest.raises(DataError, match=r"corpus\.txt changed while it was read; start again"):
        prepare_tokens(text(corpus_folder), corpus_folder / "data", 256, progress=edit)
    assert Path(prepared(corpus_folder).path).read_bytes() == (corpus_folder / "corpus.txt").read_bytes()


class TestTheFileOfTheUsers:
    def corpus(self, base: Path) -> Corpus:
        return find_corpus(TokenData(source="tokens", path="ids.bin"), base, 256)

    def test_one_that_changed_between_stop_and_resume_is_an_error_that_names_it(self, tmp_path):
        path = tmp_path / "ids.bin"
        (np.arange(200_000) % 251).astype("<u2").tofile(path)
        prepare_tokens(self.corpus(tmp_path), tmp_path / "data", 256)
        prepare_tokens(self.corpus(tmp_path), tmp_path / "data", 256)
        alter(path)
        with pytest.raises(DataError, match=r"ids.bin changed since this sweep began: its SHA-256 is .* restore it"):
            prepare_tokens(self.corpus(tmp_path), tmp_path / "data", 256)
        alter(path)
        assert prepare_tokens(self.corpus(tmp_path), tmp_path / "data", 256).num_tokens == 200_000

    def test_a_sweep_refuses_before_it_writes_anything(self, tmp_path):
        path = tmp_path / "ids.bin"
        (np.arange(200_000) % 251).astype("<u2").tofile(path)
        data = {"source": "tokens", "path": "ids.bin", "heldout_tokens": 1024}
        plan = plan_of(with_values(MICRO, data=data, output_root=str(tmp_path / "out")), tmp_path)
        prepare_tokens(plan.corpus, plan.folder / "data", 256)
        before = sorted(plan.folder.rglob("*"))
        os.truncate(path, 300_000)
        with pytest.raises(DataError, match=r"changed since this sweep began: it has 300000 bytes and had 400000"):
            run_sweep(plan)
        assert sorted(plan.folder.rglob("*")) == before

    def test_one_that_is_touched_is_still_the_same_and_one_that_is_gone_is_open_elsewhere(self, tmp_path):
        path = tmp_path / "ids.bin"
        (np.arange(200_000) % 251).astype("<u2").tofile(path)
        prepare_tokens(self.corpus(tmp_path), tmp_path / "data", 256)
        (watched,) = watched_files([self.corpus(tmp_path)], tmp_path / "data")
        os.utime(path, ns=(0, 0))
        watched.check()
        rewrite(path)
        with pytest.raises(DataChangedError, match=r"ids\.bin changed while it was trained on: its SHA-256 is"):
            watched.check()
        path.unlink()
        watched.check()

    @pytest.mark.parametrize("checkpoint_every_seconds", [0.0, 1e9])
    def test_a_run_under_which_it_is_altered_ends_without_a_checkpoint_and_without_a_loss(
        self, server, tmp_path, faults, checkpoint_every_seconds
    ):
        faults.inject("spec or data changed while running")
        (np.arange(50_000) % 251).astype("<u2").tofile(tmp_path / "ids.bin")
        values = with_values(SHORT, data={"source": "tokens", "path": "ids.bin", "heldout_tokens": 1024})
        plan = plan_of(values, tmp_path)
        workload = workload_of(plan, plan.runs[0], tmp_path / "data")
        watched = watched_files(plan.corpus.trained_on, tmp_path / "data")
        rewrite(tmp_path / "ids.bin")
        attempt = start(
            server, plan.runs[0], workload, tmp_path / "run", Layout(),
            checkpoint_every_seconds=checkpoint_every_seconds, watched=watched,
        )  # fmt: skip
        assert attempt.wait() == [EXIT_FAILED], attempt.logs()
        error = read_json(attempt.folder.attempt(1) / "error.0.json")
        assert f"{tmp_path / 'ids.bin'} changed while it was trained on" in error["message"]
        assert error["fault"] is None
        assert not (attempt.folder.attempt(1) / "outcome.json").exists()
        assert not list(attempt.folder.checkpoint.glob("step-*"))
        faults.cost("spec or data changed while running", 0, allowed=0)


OLD_RUN, OLD_ORDER = "b785e97eeb8f", ["a.txt", "c.txt", "b.txt"]
OLD_MISREAD_RUN = "59c7bf702213"
"""As the version before corpora were their content alone planned the same specs on the same files."""


class TestOldFolders:
    def test_a_sweep_begun_by_names_goes_on_with_its_runs_and_their_order(self, tmp_path):
        for name in ("a.txt", "b.txt", "c.txt"):
            (tmp_path / name).write_text(f"{name} says " * 2000)
        spec = with_values(MICRO, data__paths=["*.txt"], output_root=str(tmp_path / "out"))
        new = plan_of(spec, tmp_path)
        (new.folder / "runs" / OLD_RUN).mkdir(parents=True)
        old = plan_of(spec, tmp_path)
        assert [run.run_id for run in old.runs] == [OLD_RUN] != [run.run_id for run in new.runs]
        assert [Path(name).name for name in old.corpus.files] == OLD_ORDER

    def test_a_folder_none_of_whose_runs_is_planned_is_told_with_what_may_have_moved(self, tmp_path):
        (tmp_path / "a.txt").write_text("some words " * 2000)
        spec = with_values(MICRO, data__paths=["*.txt"], output_root=str(tmp_path / "out"))
        assert not plan_of(spec, tmp_path).warnings
        (tmp_path / "out" / MICRO["name"] / "runs" / "0123456789abcdef").mkdir(parents=True)
        assert any("holds 1 runs, and none is of this plan" in warning for warning in plan_of(spec, tmp_path).warnings)
        (tmp_path / "out" / MICRO["name"] / "runs" / plan_of(spec, tmp_path).runs[0].run_id).mkdir()
        assert not any("none is of this plan" in warning for warning in plan_of(spec, tmp_path).warnings)

    def test_runs_on_wide_ids_read_as_narrow_ones_are_no_longer_trusted(self, tmp_path):
        (np.random.default_rng(0).integers(0, 250, 50_000)).astype("<i4").tofile(tmp_path / "ids.bin")
        data = {"source": "tokens", "path": "ids.bin", "heldout_tokens": 1024}
        spec = with_values(MICRO, data=data, output_root=str(tmp_path / "out"))
        new = plan_of(spec, tmp_path)
        (new.folder / "runs" / OLD_MISREAD_RUN).mkdir(parents=True)
        again = plan_of(spec, tmp_path)
        assert [run.run_id for run in again.runs] == [run.run_id for run in new.runs] != [OLD_MISREAD_RUN]
        assert any("1 runs were trained on other ids than meant (ids.bin read as uint16" in w for w in again.warnings)

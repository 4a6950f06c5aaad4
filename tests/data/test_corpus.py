"""Data: what is found, what is refused, and what the fingerprint notices."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.contents import SAMPLE_BYTES, SAMPLES
from flopsfit_ds.data.corpus import Corpus, find_corpus
from flopsfit_ds.spec import StdlibData, TextData, TokenData
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus


def text(base: Path, *paths: str, **options) -> Corpus:
    return find_corpus(TextData(source="text", paths=paths, **options), base, 256)


def tokens(path: Path, vocab_size: int = 2**16, **options) -> Corpus:
    return find_corpus(TokenData(source="tokens", path=path.name, **options), path.parent, vocab_size)


class TestStandardLibrary:
    def test_it_is_there_and_large_and_the_same_each_time(self):
        found = find_corpus(StdlibData(), Path(), 256)
        assert found == find_corpus(StdlibData(), Path("/elsewhere"), 256)
        assert found.num_tokens == found.num_bytes > 5_000_000
        assert found.training_tokens == found.num_bytes - found.heldout_tokens
        assert all(name.endswith(".py") for name in found.files)

    def test_installed_packages_and_tests_are_no_part_of_it(self):
        parts = {part for name in find_corpus(StdlibData(), Path(), 256).files for part in Path(name).parts[-4:]}
        assert not parts & {"site-packages", "dist-packages", "__pycache__", "test"}


class TestText:
    def test_files_folders_and_patterns_are_found_once_each(self, tmp_path):
        for name in ("a.txt", "sub/b.txt", "sub/deep/c.md"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name * 10)
        found = text(tmp_path, "a.txt", "sub", "**/*.txt", str(tmp_path / "a.txt"))
        assert sorted(Path(name).name for name in found.files) == ["a.txt", "b.txt", "c.md"]
        assert found.num_tokens == sum(Path(name).stat().st_size for name in found.files)

    def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(self, tmp_path):
        folder = tmp_path / "runs[1]*"
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "a.txt").write_text("a" * 100)
        for path in ("sub", "sub/*.txt"):
            assert [Path(name).name for name in text(folder, path, heldout_tokens=10).files] == ["a.txt"]

    def test_the_order_depends_on_content_alone_so_that_the_heldout_tail_stays(self, tmp_path):
        orders = []
        for folder, names in (("one", "abcdef"), ("two", "fedcba")):
            (tmp_path / folder).mkdir()
            for name, content in zip(names, "abcdef", strict=True):
                (tmp_path / folder / name).write_text(content)
            orders.append([Path(name).read_text() for name in text(tmp_path / folder, "*").files])
        assert orders[0] == orders[1] != sorted(orders[0])

    def test_a_missing_path_is_an_error_that_names_it(self, tmp_path):
        with pytest.raises(DataError, match=r"data.paths: .*nothing/\*.txt: no such file or folder"):
            text(tmp_path, "nothing/*.txt")

    def test_a_missing_tokenizer_is_an_error_that_names_it(self, corpus_folder):
        with pytest.raises(DataError, match=r"data.tokenizer: .*tok.json: No such file"):
            text(corpus_folder, "corpus.txt", tokenizer="tok.json")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_an_unreadable_file_is_an_error_that_names_it(self, corpus_folder):
        (corpus_folder / "corpus.txt").chmod(0)
        with pytest.raises(DataError, match=r"corpus.txt: not readable"):
            text(corpus_folder, "corpus.txt")


class TestFingerprint:
    def test_a_corpus_is_its_content_wherever_it_lies_and_whatever_it_is_called(self, tmp_path):
        prints = {}
        for folder, content in (("one", "hello"), ("two", "hello"), ("three", "hallo")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "a.txt").write_text(content)
            prints[folder] = text(tmp_path / folder, "a.txt").fingerprint
        assert prints["one"] == prints["two"] != prints["three"]
        (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "b.txt")
        assert text(tmp_path / "two", "b.txt").fingerprint == prints["one"]
        assert text(tmp_path, "two").fingerprint == prints["one"]

    def test_bytes_cannot_move_from_one_file_to_the_next_unnoticed(self, tmp_path):
        for folder, contents in (("one", ("ab", "c")), ("two", ("a", "bc"))):
            (tmp_path / folder).mkdir()
            for name, content in zip("xy", contents, strict=True):
                (tmp_path / folder / name).write_text(content)
        assert text(tmp_path / "one", "*").fingerprint != text(tmp_path / "two", "*").fingerprint

    def test_the_tokenizer_counts(self, corpus_folder):
        found = []
        for added in ([], [{"id": 1, "content": "b"}]):
            content = {"model": {"vocab": {"a": 0}}, "added_tokens": added}
            (corpus_folder / "tok.json").write_text(json.dumps(content))
            found.append(text(corpus_folder, "corpus.txt", tokenizer="tok.json"))
        assert found[0].fingerprint != found[1].fingerprint != text(corpus_folder, "corpus.txt").fingerprint
        assert found[0].num_tokens is None  # only tokenising would tell

    def test_of_a_large_file_both_ends_and_the_size_are_seen(self, tmp_path):
        size = SAMPLES * SAMPLE_BYTES + 10_000_000
        path = tmp_path / "large.bin"
        path.write_bytes(random.Random(0).randbytes(size))
        before = tokens(path).fingerprint
        for position in (0, size - 1):
            with path.open("r+b") as stream:
                stream.seek(position)
                old = stream.read(1)
                stream.seek(position)
                stream.write(bytes([old[0] ^ 1]))
            assert tokens(path).fingerprint != before
        path.write_bytes(path.read_bytes()[:-2])
        assert tokens(path).fingerprint != before


class TestTokenFiles:
    @pytest.mark.parametrize("dtype", ["uint16", "uint32"])
    def test_bin_and_npy_hold_the_same_ids(self, tmp_path, dtype):
        ids = np.arange(5000, dtype=dtype)
        ids.tofile(tmp_path / "ids.bin")
        np.save(tmp_path / "ids.npy", ids)
        for name in ("ids.bin", "ids.npy"):
            found = tokens(tmp_path / name, dtype=dtype, heldout_tokens=1000)
            assert (found.num_tokens, found.training_tokens, found.dtype) == (5000, 4000, dtype)

    def test_another_type_than_stated_is_refused(self, tmp_path):
        np.save(tmp_path / "ids.npy", np.arange(10, dtype=np.uint32))
        with pytest.raises(DataError, match=r"holds uint32, says its .npy header; the spec says data.dtype: uint16"):
            tokens(tmp_path / "ids.npy", dtype="uint16")

    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (np.zeros(5, dtype=np.float32), "holds <f4"),
            (np.asfortranarray(np.zeros((5, 5), dtype=np.uint16)), r"shape \(5, 5\)"),
            (np.zeros(5, dtype=">u2"), "holds >u2"),
            (np.zeros((5, 5), dtype=np.uint16), r"shape \(5, 5\)"),
            (np.zeros(5, dtype=[("a", "<u2")]), "it takes one row of uint8, or of little-endian uint16"),
            (np.zeros((), dtype=np.uint16), "it takes one row"),
            (np.zeros(0, dtype=np.uint16), "empty or cut short"),
        ],
    )
    def test_arrays_of_other_kinds_are_refused(self, tmp_path, array, said):
        np.save(tmp_path / "ids.npy", array)
        with pytest.raises(DataError, match=said):
            tokens(tmp_path / "ids.npy")

    def test_half_an_id_is_refused(self, tmp_path):
        (tmp_path / "ids.bin").write_bytes(b"abc")
        with pytest.raises(DataError, match="3 bytes, which is no whole number of uint16 ids"):
            tokens(tmp_path / "ids.bin")

    @pytest.mark.parametrize("name", ["ids.bin", "ids.npy"])
    def test_an_empty_file_and_a_folder_are_refused(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=name):
            tokens(tmp_path / name)
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match="is no file that can be read"):
            tokens(tmp_path / name)

    def test_a_missing_file_is_refused_unless_its_size_is_given(self, tmp_path):
        with pytest.raises(DataError, match=r"ids.bin: no such file.*data.num_tokens"):
            tokens(tmp_path / "ids.bin")
        assert tokens(tmp_path / "ids.bin", num_tokens=10**9).num_tokens == 10**9
        np.arange(10, dtype=np.uint16).tofile(tmp_path / "ids.bin")
        with pytest.raises(DataError, match=r"holds 10 ids; the spec says data.num_tokens: 11"):
            tokens(tmp_path / "ids.bin", num_tokens=11)

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_a_damaged_npy_header_is_an_error_or_the_same_ids(self, tmp_path, data):
        path = tmp_path / "ids.npy"
        np.save(path, np.arange(100, dtype=np.uint16))
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            found = tokens(path)
        except DataError:
            return
        assert found.num_tokens is not None
        assert 0 < found.num_tokens <= 100


class TestShortData:
    def test_a_context_longer_than_the_training_data_is_refused_with_the_numbers(self, tmp_path):
        write_bytes_corpus(tmp_path / "corpus.txt", 1100)
        with pytest.raises(DataError) as caught:
            plan_of(with_values(MICRO, data__heldout_tokens=1090), tmp_path)
        assert "1100 tokens less 1090 held out leave 10, and one sequence needs 17" in str(caught.value)

    def test_heldout_data_shorter_than_a_sequence_is_refused(self, corpus_folder):
        with pytest.raises(DataError, match=r"data.heldout_tokens: 16 tokens do not hold one sequence of 16"):
            plan_of(with_values(MICRO, data__heldout_tokens=16), corpus_folder)

    def test_more_held_out_than_there_is_is_refused(self, corpus_folder):
        with pytest.raises(DataError, match="leave 0"):
            plan_of(with_values(MICRO, data__heldout_tokens=10**9), corpus_folder)

    def test_repeats_are_a_warning_that_says_how_often(self, tmp_path):
        write_bytes_corpus(tmp_path / "corpus.txt", 1024 + 6400)
        plan = plan_of(MICRO, tmp_path)
        assert any("the data repeats 2.0 times" in warning for warning in plan.warnings)
        assert not any("repeats" in warning for warning in plan_of(MICRO, _long(tmp_path)).warnings)


def _long(folder: Path) -> Path:
    write_bytes_corpus(folder / "corpus.txt", 100_000)
    return folder

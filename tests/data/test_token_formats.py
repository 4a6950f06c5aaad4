"""Files of token ids: what a header says is taken, what is bare is found out, and what cannot be right is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.corpus import Corpus, find_corpus
from flopsfit_ds.spec import TokenData
from flopsfit_ds.train.data.token_file import prepare_tokens

GPT2, LLAMA3 = 50257, 128256


def found(path: Path, vocab_size: int = GPT2, **options) -> Corpus:
    return find_corpus(TokenData(source="tokens", path=path.name, **options), path.parent, vocab_size)


def ids_read(path: Path, vocab_size: int = GPT2) -> list[int]:
    corpus = found(path, vocab_size, heldout_tokens=10)
    return prepare_tokens(corpus, path.parent / "data", vocab_size).open().tolist()


def drawn(largest: int, count: int = 3000) -> np.ndarray:
    return np.random.default_rng(0).integers(0, largest, count)


def write_index(
    path: Path, sizes: list[int], *, code: int = 4, version: int = 1, magic: bytes = b"MMIDIDX\0\0"
) -> None:
    width = {4: 4, 5: 8, 8: 2}.get(code, 4)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) * width
    content = magic + struct.pack("<QBQQ", version, code, len(sizes), len(sizes) + 1)
    content += np.array(sizes, "<i4").tobytes() + starts.astype("<i8").tobytes()
    path.write_bytes(content + np.arange(len(sizes) + 1, dtype="<i8").tobytes())


def llmc(magic: int, version: int, count: int) -> bytes:
    head = np.zeros(256, "<i4")
    head[:3] = magic, version, count
    return head.tobytes()


class TestWhatAFileSays:
    @pytest.mark.parametrize(
        ("magic", "version", "kind", "vocab"), [(20240520, 1, "<u2", GPT2), (20240801, 7, "<u4", LLAMA3)]
    )
    def test_the_header_of_llmc_is_no_text(self, tmp_path, magic, version, kind, vocab):
        ids = drawn(vocab)
        (tmp_path / "ids.bin").write_bytes(llmc(magic, version, len(ids)) + ids.astype(kind).tobytes())
        assert ids_read(tmp_path / "ids.bin", vocab) == ids.tolist()

    @pytest.mark.parametrize(
        ("version", "said", "written", "words"),
        [(2, 100, 100, "of version 2; version 1"), (1, 101, 100, "tells of 101 ids"), (1, 99, 100, "tells of 99 ids")],
    )
    def test_what_the_header_of_llmc_says_must_hold(self, tmp_path, version, said, written, words):
        (tmp_path / "ids.bin").write_bytes(llmc(20240520, version, said) + drawn(GPT2, written).astype("<u2").tobytes())
        with pytest.raises(DataError, match=words):
            found(tmp_path / "ids.bin")

    @pytest.mark.parametrize(("code", "kind"), [(4, "<i4"), (5, "<i8"), (8, "<u2")])
    def test_the_index_of_megatron_says_the_type(self, tmp_path, code, kind):
        ids = drawn(300)
        ids.astype(kind).tofile(tmp_path / "ids.bin")
        write_index(tmp_path / "ids.idx", [1000, 1500, 500], code=code)
        assert ids_read(tmp_path / "ids.bin") == ids.tolist()
        assert "3 sequences in 3 documents" in found(tmp_path / "ids.bin").notes[0]
        (tmp_path / "link").mkdir()
        (tmp_path / "link" / "other.bin").symlink_to(tmp_path / "ids.bin")
        assert found(tmp_path / "link" / "other.bin").num_tokens == len(ids)

    @pytest.mark.parametrize(
        ("sizes", "changes", "words"),
        [
            ([1000], {}, "tells of 4000 bytes of int32 ids, and ids.bin has 12000"),
            ([3000], {"version": 2}, "of version 2; version 1 can be read"),
            ([3000], {"magic": b"TNTIDX\0\0\0"}, "ids.idx beside ids.bin is no Megatron index"),
            ([3000], {"code": 7}, "code 7 for the type of the ids"),
        ],
    )
    def test_an_index_of_another_file_or_kind_is_refused(self, tmp_path, sizes, changes, words):
        drawn(300).astype("<i4").tofile(tmp_path / "ids.bin")
        write_index(tmp_path / "ids.idx", sizes, **changes)
        with pytest.raises(DataError, match=words):
            found(tmp_path / "ids.bin")

    def test_an_index_that_is_cut_short_is_refused(self, tmp_path):
        drawn(300).astype("<i4").tofile(tmp_path / "ids.bin")
        write_index(tmp_path / "ids.idx", [1500, 1500])
        whole = (tmp_path / "ids.idx").read_bytes()
        for length in (5, 20, len(whole) - 8):
            (tmp_path / "ids.idx").write_bytes(whole[:length])
            with pytest.raises(DataError, match=r"ids.idx"):
                found(tmp_path / "ids.bin")

    def test_an_array_of_64_bits_is_read_and_two_arrays_in_one_file_are_not(self, tmp_path):
        np.save(tmp_path / "ids.npy", drawn(GPT2))
        assert ids_read(tmp_path / "ids.npy") == drawn(GPT2).tolist()
        with (tmp_path / "ids.npy").open("ab") as stream:
            np.save(stream, drawn(GPT2))
        with pytest.raises(DataError, match="bytes behind the 3000 ids of int64"):
            found(tmp_path / "ids.npy")

    def test_a_type_that_contradicts_the_file_is_refused(self, tmp_path):
        drawn(300).astype("<i4").tofile(tmp_path / "ids.bin")
        write_index(tmp_path / "ids.idx", [3000])
        with pytest.raises(DataError, match=r"holds int32, says ids.idx .* data.dtype: uint16: write int32"):
            found(tmp_path / "ids.bin", dtype="uint16")


class TestWhatABareFileShows:
    @given(st.sampled_from(["<u2", "<i4", "<i8"]), st.integers(5, 70_000), st.integers(0, 99), st.integers(64, 400))
    def test_the_type_is_found_or_has_to_be_given_but_never_wrong(self, tmp_path_factory, kind, vocab, seed, count):
        if kind == "<u2" and vocab > 65536:
            return
        path = tmp_path_factory.mktemp("ids") / "ids.bin"
        ids = (np.random.default_rng(seed).pareto(1.0, count) * 3).astype(np.int64) % vocab
        ids.astype(kind).tofile(path)
        try:
            assert found(path, vocab).num_tokens == count
        except DataError as error:
            assert "write data.dtype" in str(error)  # noqa: PT017 (both ends are right)
            assert len(set(ids)) < 8

    @pytest.mark.parametrize("kind", [">u2", ">i4", ">i8"])
    def test_the_other_byte_order_is_refused_with_what_to_do(self, tmp_path, kind):
        (drawn(30_000) // 7).astype(kind).tofile(tmp_path / "ids.bin")
        for dtype in (None, {"2": "uint16", "4": "int32", "8": "int64"}[kind[-1]]):
            with pytest.raises(DataError, match=r"big-endian .* write them little-endian"):
                found(tmp_path / "ids.bin", dtype=dtype)

    @pytest.mark.parametrize("ids", [np.zeros(500), np.arange(500) % 2 * 256])
    def test_what_shows_nothing_has_to_be_given(self, tmp_path, ids):
        ids.astype("<u2").tofile(tmp_path / "ids.bin")
        with pytest.raises(DataError, match=r"does not show the type of its ids.*write data.dtype"):
            found(tmp_path / "ids.bin")
        assert found(tmp_path / "ids.bin", dtype="uint16").num_tokens == 500

    def test_wide_ids_are_not_read_as_narrow_ones_even_if_the_spec_says_so(self, tmp_path):
        drawn(GPT2).astype("<i4").tofile(tmp_path / "ids.bin")
        with pytest.raises(DataError, match=r"holds int32 .* every second id is an upper half"):
            found(tmp_path / "ids.bin", dtype="uint16")

    def test_narrow_ids_are_not_read_as_wide_ones(self, tmp_path):
        drawn(GPT2).astype("<u2").tofile(tmp_path / "ids.bin")
        with pytest.raises(DataError, match="read as int32, holds id"):
            found(tmp_path / "ids.bin", dtype="int32")

    @pytest.mark.parametrize("kind", ["<u2", "<i4"])
    def test_a_file_cut_within_an_id_is_refused(self, tmp_path, kind):
        for vocab in (200, GPT2):
            for cut in range(1, int(kind[-1])):
                (tmp_path / "ids.bin").write_bytes(drawn(200).astype(kind).tobytes()[:-cut])
                with pytest.raises(DataError, match="no whole number of"):
                    found(tmp_path / "ids.bin", vocab)

    def test_two_bytes_hold_no_vocabulary_above_65536(self, tmp_path):
        np.save(tmp_path / "ids.npy", drawn(60_000).astype(np.uint16))
        assert found(tmp_path / "ids.npy", 65536).num_tokens == 3000
        with pytest.raises(DataError, match=r"uint16 holds no id above 65535, and model.vocab_size is 65537"):
            found(tmp_path / "ids.npy", 65537)

    def test_a_negative_id_is_refused_where_samples_do_not_show_it(self, tmp_path):
        ids = np.arange(400_000) % 100
        ids[3210] = -100
        np.save(tmp_path / "ids.npy", ids.astype("<i4"))
        with pytest.raises(DataError, match="id -100 at position 3210 is negative"):
            ids_read(tmp_path / "ids.npy")


def test_an_id_beyond_the_vocabulary_of_a_stated_type_is_named_with_the_remedy(tmp_path):
    ids = drawn(GPT2)
    ids[17] = 60_000
    (tmp_path / "ids.bin").write_bytes(ids.astype("<u2").tobytes())
    with pytest.raises(DataError, match=r"holds id 60000, .* set model\.vocab_size to 60001 or more"):
        found(tmp_path / "ids.bin", dtype="uint16")

"""Files that are no row of ids, or no text: what was trained on without a word is refused, or said."""

from __future__ import annotations

import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.corpus import Corpus, find_corpus
from flopsfit_ds.spec import TextData, TokenData

VOCAB = 65536  # any two bytes are an id
IDS = np.random.default_rng(0).zipf(1.3, 40_000) % 50257
RAW = IDS.astype("<u2").tobytes()


def tokens(path: Path, content: bytes, vocab_size: int = VOCAB, dtype: str | None = None) -> Corpus:
    path.write_bytes(content)
    return find_corpus(
        TokenData(source="tokens", path=path.name, dtype=dtype),  # pyright: ignore
        path.parent,
        vocab_size,
    )


def texts(folder: Path, **options) -> Corpus:
    return find_corpus(TextData(source="text", paths=("texts",), **options), folder, 256)


def written(write) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def arrow_stream() -> bytes:
    table = pa.table({"ids": IDS.astype("int32")})
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()


SAFETENSORS = json.dumps({"ids": {"dtype": "U16", "shape": [40_000], "data_offsets": [0, 80_000]}}).encode()
CONTAINERS = {
    "a gzip archive": gzip.compress(RAW),
    "a zip archive": written(lambda stream: np.savez_compressed(stream, ids=IDS)),
    "a zip archive .*pt": written(lambda stream: torch.save(torch.from_numpy(IDS), stream)),
    "a Parquet table": written(lambda stream: pq.write_table(pa.table({"ids": IDS}), stream)),
    "an Arrow stream": arrow_stream(),
    "a safetensors file": struct.pack("<Q", len(SAFETENSORS)) + SAFETENSORS + RAW,
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + RAW,
    "a zstd archive": b"\x28\xb5\x2f\xfd" + RAW,
}


class TestIds:
    @pytest.mark.parametrize("kind", CONTAINERS)
    def test_a_container_of_ids_is_no_row_of_ids(self, tmp_path, kind):
        content = CONTAINERS[kind]
        with pytest.raises(DataError, match=rf"ids\.bin is {kind}.*, no row of token ids; "):
            tokens(tmp_path / "ids.bin", content + bytes(len(content) % 2))
        with pytest.raises(DataError, match=r"ids\.pt is a pickle, no row"):
            tokens(tmp_path / "ids.pt", RAW)
        assert tokens(tmp_path / "ids.bin", RAW).num_tokens == len(IDS)

    @pytest.mark.parametrize(
        "text", ["import os\n", "gr\u00f6\u00dfer \u65e5 ", '{"text": "a law"}\n', "464 3290 318 "]
    )
    def test_a_text_is_no_row_of_ids_but_to_a_vocabulary_of_bytes(self, tmp_path, text):
        content = (text * 120_000).encode()[: 600_000 // 2 * 2]
        for dtype in (None, "uint16"):
            with pytest.raises(DataError, match=r"is text \(it begins .*write data.source: text"):
                tokens(tmp_path / "ids.bin", content, dtype=dtype)
        assert tokens(tmp_path / "ids.bin", content, 256).num_tokens == len(content)

    def test_a_shard_with_an_index_is_no_row_of_ids(self, tmp_path):
        for name, listed in (("chunks", {"filename": "ids.bin"}), ("shards", {"raw_data": {"basename": "ids.bin"}})):
            (tmp_path / "index.json").write_text(json.dumps({name: [listed]}))
            with pytest.raises(DataError, match=r"a shard of the data set of index.json beside it"):
                tokens(tmp_path / "ids.bin", RAW)
        (tmp_path / "index.json").write_text(json.dumps({"chunks": [{"filename": "another.bin"}]}))
        assert tokens(tmp_path / "ids.bin", RAW).num_tokens == len(IDS)

    @pytest.mark.parametrize("order", "<>")
    def test_an_unknown_header_is_refused_unless_the_type_is_said(self, tmp_path, order):
        head = np.zeros(256, f"{order}i4")
        head[:3] = 20241231, 1, len(IDS)
        with pytest.raises(DataError, match=r"as of a header of an unknown kind \(it begins .*write the ids without"):
            tokens(tmp_path / "ids.bin", head.tobytes() + RAW)
        said = tokens(tmp_path / "ids.bin", head.tobytes() + RAW, dtype="uint16")
        assert any("as of a header; taken for ids" in note for note in said.notes)

    @pytest.mark.parametrize("filler", [0, 50256])
    @pytest.mark.parametrize("suffix", ["bin", "npy"])
    def test_room_at_the_end_that_was_never_written_is_refused(self, tmp_path, filler, suffix):
        ids = np.full(50_000, filler, "<u2")
        ids[:40_000] = IDS
        content = ids.tobytes() if suffix == "bin" else written(lambda stream: np.save(stream, ids))
        with pytest.raises(DataError, match=rf"its last 2,048 ids and perhaps more are all {filler}, .* cut it there"):
            tokens(tmp_path / f"ids.{suffix}", content)

    def test_a_hole_is_said(self, tmp_path):
        ids = np.tile(IDS, 8).astype("<u2")
        assert not any(
            "samples" in note and "one id" in note for note in tokens(tmp_path / "a.bin", ids.tobytes()).notes
        )
        ids[100_000:150_000] = 7
        assert any(
            "10 of 64 samples of 4,096 bytes are one id" in note
            for note in tokens(tmp_path / "b.bin", ids.tobytes()).notes
        )


class TestTexts:
    @pytest.mark.parametrize("kind", ["a gzip archive", "a Parquet table", "a zip archive"])
    def test_a_container_is_no_text(self, tmp_path, kind):
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("a law " * 1000)
        (tmp_path / "texts" / "b.dat").write_bytes(CONTAINERS[kind])
        with pytest.raises(DataError, match=rf"b\.dat is {kind}.*, no text; "):
            texts(tmp_path)

    def test_text_of_two_bytes_a_character_is_refused(self, tmp_path):
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("a law " * 1000, encoding="utf-16")
        with pytest.raises(DataError, match=r"a\.txt is UTF-16 text, no text; write it as UTF-8"):
            texts(tmp_path)

    def test_what_is_no_utf_8_and_what_is_json_is_said(self, tmp_path):
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("gr\u00f6\u00dfer als \u65e5\u672c " * 1000, encoding="utf-8")
        assert len(texts(tmp_path).notes) == 1
        (tmp_path / "texts" / ".DS_Store").write_bytes(bytes(1000))
        (tmp_path / "texts" / "b.jsonl").write_text('{"text": "a law"}\n' * 100)
        said = " ".join(texts(tmp_path).notes)
        assert "1 of 3 files looked at are no UTF-8 text (.DS_Store, ...)" in said
        assert "1 files are JSON (b.jsonl, ...)" in said

    def test_copies_are_said_and_refused_where_all_that_is_held_out_is_trained_on(self, tmp_path):
        (tmp_path / "texts").mkdir()
        for name in "abc":
            (tmp_path / "texts" / name).write_text("a law " * 1000)
        with pytest.raises(DataError, match=r"all that is held out lies in .*c, and .*b holds the same"):
            texts(tmp_path, heldout_tokens=1000)
        assert "2 files, 12,000 bytes, are copies of others: kept" in texts(tmp_path, heldout_tokens=10_000).notes

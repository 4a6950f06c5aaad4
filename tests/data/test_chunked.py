"""Folders of chunks and archives of other libraries: all of their documents come, and what is damaged is named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.corpus import Corpus, find_corpus
from flopsfit_ds.data.sources.reading import Ids, source_of
from flopsfit_ds.spec import FilesData, FolderData
from helpers.chunked import unpack_chunked

TEXTS = [f"document {number} é" for number in range(7)]


def find(source: str, path: Path, column: str = "text") -> Corpus:
    section: Any = {"source": source, "column": column, "heldout_tokens": 4}
    if source == "webdataset":
        return find_corpus(FilesData(paths=(path.name,), **section), path.parent, 256)
    return find_corpus(FolderData(path=path.name, **section), path.parent, 256)


def documents(corpus: Corpus) -> list[Any]:
    """All documents of a corpus, piece by piece."""
    assert corpus.reading is not None
    source, files, found = source_of(corpus.reading.kind), [Path(name) for name in corpus.files], []
    for piece in source.split(files):
        for batch in source.read(files, corpus.reading, piece):
            if not isinstance(batch, Ids):
                found += batch
                continue
            values, start = list(batch.values), 0
            for length in batch.lengths or ():
                found.append(values[start : start + length])
                start += length
    return found


@pytest.mark.parametrize(
    ("source", "folder", "column", "expected"),
    [
        ("mds", "mds", "text", TEXTS),
        ("mds", "mds", "ids", [list(range(n, 2 * n + 5)) for n in range(7)]),
        ("litdata", "lit_tok", "any", [list(range(10 * n, 11 * n + 5)) for n in range(7)]),
        ("litdata", "lit_dict", "text", TEXTS),
        ("litdata", "lit_dict", "ids", [list(range(n + 1)) for n in range(7)]),
        ("litdata", "lit_txt", "any", TEXTS),
    ],
)
def test_every_document_that_the_library_wrote_is_read(source, folder, column, expected, tmp_path):
    corpus = find(source, unpack_chunked(tmp_path) / folder, column)
    assert sorted(map(str, documents(corpus))) == sorted(map(str, expected))
    assert documents(corpus) == expected or folder == "lit_tok"  # whose chunks are in the order of the index


def test_a_moved_folder_is_the_same_corpus_and_another_column_is_another(tmp_path):
    one = find("mds", unpack_chunked(tmp_path / "one") / "mds")
    assert find("mds", unpack_chunked(tmp_path / "two") / "mds").fingerprint == one.fingerprint
    assert find("mds", tmp_path / "one" / "mds", "ids").fingerprint != one.fingerprint


CHUNKS = {"mds": "shard.00000.mds", "lit_tok": "chunk-0-1.bin", "lit_dict": "chunk-0-0.bin"}


@pytest.mark.parametrize("folder", CHUNKS)
def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path):
    source = "mds" if folder == "mds" else "litdata"
    place = unpack_chunked(tmp_path) / folder
    chunk = place / CHUNKS[folder]
    if folder != "lit_tok":
        with pytest.raises(DataError, match="has no column 'body'; it has ids"):
            find(source, place, "body")
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-5])
    with pytest.raises(DataError, match=rf"has {len(content) - 5} bytes, and its index says {len(content)}: it ends e"):
        find(source, place)
    chunk.unlink()
    with pytest.raises(DataError, match="there is no such file: it ends early"):
        find(source, place)
    index = json.loads((place / "index.json").read_text())
    (index["shards"][0] if source == "mds" else index["config"])["compression"] = "zstd"
    (place / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="compress"):
        find(source, place)
    (place / "index.json").unlink()
    with pytest.raises(DataError, match=r"index.json: No such file or directory; it takes a folder that"):
        find(source, place)


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_samples_of_an_archive_are_read_by_extension_or_entry(tmp_path):
    members: dict[str, bytes] = {}
    for number, text in enumerate(TEXTS):
        members[f"part.one/{number:04d}.txt"] = text.encode()
        members[f"part.one/{number:04d}.json"] = json.dumps({"text": text, "ids": [number] * 3}).encode()
        members[f"part.one/{number:04d}.seg.txt"] = b"not this one"
    archive = write_archive(tmp_path / "shard.tar", members)
    assert documents(find("webdataset", archive, "txt")) == TEXTS
    assert documents(find("webdataset", archive, "json.text")) == TEXTS
    assert documents(find("webdataset", archive, "json.ids")) == [[number] * 3 for number in range(7)]
    with pytest.raises(DataError, match=r"has no column 'text'; it has json, seg.txt, txt"):
        find("webdataset", archive, "text")
    with pytest.raises(DataError, match="has no column 'body'; it has ids, text"):
        find("webdataset", archive, "json.body")
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(DataError, match="ends early"):
        documents(find("webdataset", archive, "txt"))

"""Documents written in the formats that sources read, each as the library that owns the format writes it."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ("the ", "model ", "learns ", "tokens ", "of ", "scaling ", "laws ", "é ", "loss. ")


def texts(count: int = 400, seed: int = 0) -> list[str]:
    """Documents of a few words in random order, of different lengths."""
    generator = random.Random(seed)
    return ["".join(generator.choice(WORDS) for _ in range(generator.randint(1, 60))) for _ in range(count)]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]], row_group_size: int = 64) -> Path:
    """A file of several row groups."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(dict(columns)), path, row_group_size=row_group_size)
    return path


def write_saved(folder: Path, splits: Mapping[str, Sequence[str]], rows_of_a_batch: int = 64) -> Path:
    """What `datasets.DatasetDict.save_to_disk` writes (datasets 5.2.0), with columns `text` and `title`."""
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    for split, documents in splits.items():
        write_dataset(folder / split, {"text": documents, "title": [each[:3] for each in documents]}, rows_of_a_batch)
    return folder


def write_dataset(folder: Path, columns: Mapping[str, Sequence[Any]], rows_of_a_batch: int = 64) -> Path:
    """What `datasets.Dataset.save_to_disk(num_shards=2)` writes (datasets 5.2.0)."""
    import pyarrow

    folder.mkdir()
    table = pyarrow.table(dict(columns))
    half = -(-table.num_rows // 2)
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name, part in zip(names, (table.slice(0, half), table.slice(half)), strict=True):
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as stream:
            for batch in part.to_batches(max_chunksize=rows_of_a_batch):
                stream.write_batch(batch)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write_llmc(path: Path, ids: np.ndarray) -> Path:
    """A file of GPT-2's ids with llm.c's header."""
    path.write_bytes(struct.pack("<256i", 20240520, 1, len(ids), *[0] * 253) + ids.astype("<u2").tobytes())
    return path


def write_megatron(stem: Path, documents: Sequence[np.ndarray]) -> Path:
    """A pair of `.bin` and `.idx` of uint16, a sequence a document."""
    stem.with_name(stem.name + ".bin").write_bytes(b"".join(each.astype("<u2").tobytes() for each in documents))
    lengths = np.array([len(each) for each in documents], "<i4")
    starts = (np.cumsum(lengths) - lengths).astype("<i8") * 2
    bounds = np.arange(len(documents) + 1, dtype="<i8")
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(lengths), len(bounds))
    stem.with_name(stem.name + ".idx").write_bytes(head + lengths.tobytes() + starts.tobytes() + bounds.tobytes())
    return stem

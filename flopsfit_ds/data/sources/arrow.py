"""Datasets that the Hugging Face library saved to disk: streams of Arrow's record batches, by pyarrow.

`save_to_disk` writes a folder with `dataset_info.json`, `state.json`, which lists the files, and the files; of several
splits a folder with `dataset_dict.json` and such a folder for each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.sources.columns import documents_of, kind_of_column, pyarrow_for
from flopsfit_ds.data.sources.reading import PIECE_BYTES, Batch, Piece, Reading


def files_of(folder: Path, split: str | None) -> list[Path]:
    """The files of a saved dataset, in its order.

    Raises:
        DataError: No such folder or split, or a file is missing.
    """
    if not folder.is_dir():
        raise DataError(
            f"data.path: {folder}: no such folder, and nothing is fetched by name; save a dataset of the Hub once, "
            'with datasets.load_dataset("NAME", split="train").save_to_disk("FOLDER"), and write that folder here'
        )
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = _json(splits).get("splits", [])
        if split not in names:
            found = "no split is named" if split is None else f"it has no split {split!r}"
            raise DataError(f"data.split: {folder} has the splits {', '.join(names)}, and {found}; name one of them")
        folder = folder / str(split)
    elif split is not None:
        raise DataError(f"data.split: {folder} is one dataset without splits; leave data.split out")
    state = folder / "state.json"
    if not state.is_file():
        raise DataError(
            f"data.path: {folder} is no dataset that save_to_disk wrote: it has no state.json or dataset_dict.json"
        )
    names = [str(file["filename"]) for file in _json(state).get("_data_files", [])]
    files = [folder / name for name in names]
    for path in files:
        if path.parent != folder or not path.is_file():
            raise DataError(f"data.path: {state} names {path.name}, and there is no such file: the dataset ends early")
    if not files:
        raise DataError(f"data.path: {state} names no files; the dataset is empty")
    return files


def look(files: Sequence[Path], column: str) -> Literal["text", "ids", "bytes"]:
    """What the column holds; each file must be whole."""
    found: list[Literal["text", "ids"]] = []
    for path in files:
        with _opened(path) as stream:
            found.append(kind_of_column(str(path), stream.schema, column))
        _count_batches(path)
    return found[0]


def split(files: Sequence[Path]) -> list[Piece]:
    """Some record batches are a piece."""
    pieces = []
    for number, path in enumerate(files):
        size, count = path.stat().st_size, _count_batches(path)
        together = max(1, count * PIECE_BYTES // max(size, 1))
        for start in range(0, count, together):
            end = min(start + together, count)
            pieces.append(Piece(number, start, end, size * (end - start) // count))
    return pieces


def read(files: Sequence[Path], reading: Reading, piece: Piece) -> Iterator[Batch]:
    """The documents of some record batches."""
    path = files[piece.file]
    with _opened(path) as stream:
        for number, batch in enumerate(stream):
            if number >= piece.end:
                return
            if number >= piece.start:
                yield from documents_of(str(path), reading.column, batch.column(reading.column))


def _count_batches(path: Path) -> int:
    """Record batches of a file; they are mapped, not read."""
    arrow = pyarrow_for("hf")
    try:
        with _opened(path) as stream:
            return sum(1 for _ in stream)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"data.path: {path} ends early or is damaged: {error}; write or fetch it again") from None


def _opened(path: Path) -> Any:
    arrow = pyarrow_for("hf")
    try:
        return arrow.ipc.open_stream(arrow.memory_map(str(path)))
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"data.path: {path} is no file of a saved dataset: {error}; write or fetch it again") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"data.path: {path}: {error}; save the dataset again") from None
    if not isinstance(found, dict):
        raise DataError(f"data.path: {path} is damaged; save the dataset again")
    return found

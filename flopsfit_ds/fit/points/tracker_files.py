"""Files that trackers keep by themselves: MLflow's database, TensorBoard's event files, Weights & Biases' offline runs.

Each becomes a history (a row for each step of each run, with the configuration of the run), which `trackers.unfold`
makes one row for each run of. The libraries are needed only for the formats that are theirs alone.
"""

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import DataError

_EVENTS = "events.out.tfevents."
_BLOCK = 32768
_FRAME = 7
"""Bytes before each part of a record in a file of Weights & Biases: checksum, length, kind; none crosses a block."""
_HEAD = b":W&B"
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4

Row = dict[str, Any]


def is_tracker_folder(folder: Path) -> bool:
    """Whether a folder holds files of TensorBoard or of Weights & Biases."""
    return next(tracker_files(folder), None) is not None


def tracker_files(folder: Path) -> Iterator[Path]:
    """Event files, and runs of Weights & Biases, below a folder; what vanishes meanwhile or is closed is passed by."""
    found = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    for path in sorted(path for path in found if path.name.startswith(_EVENTS) or path.suffix == ".wandb"):
        if path.is_file():
            yield path


def folder_rows(folder: Path) -> list[Row]:
    """The histories of all runs below a folder.

    Raises:
        DataError: It holds none, or the library that reads them is missing.
    """
    files = list(tracker_files(folder))
    events = [path for path in files if path.name.startswith(_EVENTS)]
    runs = [path for path in files if path.suffix == ".wandb"]
    if bool(events) == bool(runs):
        if events:
            raise DataError(f"{folder}: holds files of TensorBoard and of Weights & Biases, name the folder of one")
        raise DataError(
            f"{folder}: holds no files of TensorBoard and no runs of Weights & Biases; give a table, such as .csv"
        )
    return _event_rows(folder, events) if events else [row for path in runs for row in wandb_rows(path)]


def _event_rows(folder: Path, files: list[Path]) -> list[Row]:
    """TensorBoard: a folder is a run, and a folder in it that holds hyperparameters alone is part of it."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
            EventAccumulator,
        )
        from tensorboard.plugins.hparams import plugin_data_pb2  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            f"{folder}: TensorBoard's event files need tensorboard; install flopsfit-ds[tensorboard], or export a table"
        ) from None
    messages: Any = plugin_data_pb2
    steps: dict[str, dict[int, Row]] = defaultdict(dict)
    configs: dict[str, Row] = defaultdict(dict)
    for run in sorted({path.parent for path in files}):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        config: Row = {}
        for metadata in events.summary_metadata.values():
            if metadata.plugin_data.plugin_name == "hparams":
                told = messages.HParamsPluginData.FromString(metadata.plugin_data.content)
                config |= {f"hparams.{k}": _of_protobuf(v) for k, v in told.session_start_info.hparams.items()}
        name = str(run.relative_to(folder)) if run != folder else run.name
        if config and not tags and run != folder:
            name = str(run.parent.relative_to(folder)) if run.parent != folder else run.parent.name
        configs[name] |= config
        for tag in tags:
            for event in events.Scalars(tag):
                row = steps[name].setdefault(event.step, {"wall_time": event.wall_time})
                row[tag] = event.value
    return [
        {"run_name": name, "step": step, **configs[name], **row}
        for name, rows in steps.items()
        for step, row in sorted(rows.items())
    ]


def _of_protobuf(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    return None if kind is None else getattr(value, kind)


def wandb_rows(path: Path) -> list[Row]:
    """The history of one run in the file that Weights & Biases writes offline.

    Raises:
        DataError: It is no such file, or wandb is not installed.
    """
    try:
        from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            f"{path}: a run of Weights & Biases needs wandb; install flopsfit-ds[trackers], or export a table of runs"
        ) from None
    from google.protobuf.message import DecodeError  # pyright: ignore[reportMissingImports]

    messages: Any = wandb_internal_pb2
    config: Row = {}
    rows: list[Row] = []
    name = path.stem
    for body in _wandb_records(path):
        record = messages.Record()
        try:
            record.ParseFromString(body)
        except DecodeError as error:
            raise DataError(f"{path}: a record of another version of wandb: {error}") from None
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = f"{record.run.display_name}.{record.run.run_id}"
            config |= {f"config.{item.key}": json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            config |= {f"config.{item.key}": json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({"step": items.pop("_step", len(rows)), "timestamp": items.pop("_timestamp", None), **items})
    return [{"run_name": name, **config, **row} for row in rows]


def _wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a file: LevelDB's log format behind a head of seven bytes; a torn end is left out."""
    content = path.read_bytes()
    if content[: len(_HEAD)] != _HEAD:
        raise DataError(f"{path}: no run of Weights & Biases: it does not begin with {_HEAD.decode()}")
    place, parts = _FRAME, b""
    while place + _FRAME <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _FRAME:
            place += left  # the rest of a block that no frame fits into
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        body = content[place + _FRAME : place + _FRAME + size]
        if len(body) < size or kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST):
            return
        place += _FRAME + size
        parts = body if kind in (_WHOLE, _FIRST) else parts + body
        if kind in (_WHOLE, _LAST):
            yield parts


def is_mlflow(path: Path) -> bool:
    """Whether an SQLite file is a database of MLflow's."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            names = {str(row[0]) for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        return False
    return {"runs", "params", "metrics", "experiments"} <= names


def mlflow_rows(path: Path) -> list[Row]:
    """The histories of all runs of a database that are not deleted, with their parameters; it is only read.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            query = "SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active'"
            runs = {uuid: (name, status) for uuid, name, status in database.execute(query)}
            params: dict[str, Row] = defaultdict(dict)
            for uuid, key, value in database.execute("SELECT run_uuid, key, value FROM params"):
                params[uuid][f"config.{key}"] = value
            steps: dict[tuple[str, int], Row] = {}
            query = (
                "SELECT run_uuid, step, timestamp, key, value FROM metrics WHERE is_nan = 0 ORDER BY step, timestamp"
            )
            for uuid, step, timestamp, key, value in database.execute(query):
                steps.setdefault((uuid, step), {"timestamp": timestamp})[key] = value
    except sqlite3.Error as error:
        raise DataError(f"{path}: a database of MLflow that cannot be read: {error}") from error
    names = [name for name, _ in runs.values()]
    rows: list[Row] = []
    for (uuid, step), values in steps.items():
        if uuid in runs:
            name, status = runs[uuid]
            label = name if names.count(name) == 1 else f"{name}.{uuid}"
            rows.append({"run_name": label, "step": step, "status": status, **params[uuid], **values})
    return rows

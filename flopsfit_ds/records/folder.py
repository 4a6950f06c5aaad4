"""The files of a sweep's folder, and of its runs' folders."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import RecordError, SweepFolderError
from flopsfit_ds.base.storage import JsonLines, atomic_write, json_converter, read_json, write_json
from flopsfit_ds.records.record import RunRecord, impossible

OWN_FOLDER = 0o755
"""Mode of a folder below which checkpoints lie: whatever the umask, only its owner may write there."""

_known: dict[Path, tuple[tuple[int, int, int], RunRecord]] = {}
"""What this process has read: a start looks at each record four times, of which there may be thousands."""
_SETTLED_SECONDS = 2.0
"""A file that has lain for so long gets another time stamp when it changes, however coarse the file system's are."""


@dataclass(frozen=True)
class RunFolder:
    """Where one run's files lie."""

    path: Path

    @property
    def plan(self) -> Path:
        """The run's plan, as JSON."""
        return self.path / "plan.json"

    @property
    def record(self) -> Path:
        """The run's record; its presence means that the run has ended for good."""
        return self.path / "record.json"

    @property
    def metrics(self) -> JsonLines:
        """Training metrics, a line a step."""
        return JsonLines(self.path / "metrics.jsonl")

    @property
    def checkpoint(self) -> Path:
        """The checkpoints."""
        return self.path / "checkpoint"

    def kept(self, step: int) -> Path:
        """Where the state after so many steps is kept, for the run that branches off there."""
        return self.path / "kept" / f"after-{step}"

    def attempt(self, number: int) -> Path:
        """Folder of one try: logs and outcome."""
        return self.path / f"attempt-{number}"

    def attempt_numbers(self) -> list[int]:
        """Numbers of all attempts, ascending."""
        names = (path.name.partition("-")[2] for path in self.path.glob("attempt-*"))
        return sorted(int(name) for name in names if name.isdigit())

    def read_record(self) -> RunRecord | None:
        """The record, or None where the run has not ended; a file that has not changed is not read again.

        Raises:
            RecordError: The record is damaged.
        """
        try:
            status = self.record.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if (known := _known.get(self.record)) is not None and known[0] == seen:
                return known[1]
            content = read_json(self.record)
        except FileNotFoundError:
            return None
        if problem := impossible(content):
            raise RecordError(f"{self.record}: {problem}")
        from pydantic import ValidationError  # here, for who looks at a sweep's state reads no record

        try:
            record = json_converter(RunRecord).validate_python(content)
        except ValidationError as error:
            raise RecordError(f"{self.record}: not a record of this version: {error.errors()[0]['msg']}") from None
        if time.time() - status.st_mtime > _SETTLED_SECONDS:
            _known[self.record] = (seen, record)
        return record

    def write_record(self, record: RunRecord) -> None:
        """Write the record: the run has ended."""
        write_json(self.record, json_converter(RunRecord).dump_python(record, mode="json"))


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep's files lie."""

    path: Path

    @property
    def spec(self) -> Path:
        """The spec as last used."""
        return self.path / "spec.yaml"

    @property
    def plan(self) -> Path:
        """The resolved plan."""
        return self.path / "plan.json"

    @property
    def events(self) -> JsonLines:
        """What the scheduler did."""
        return JsonLines(self.path / "events.jsonl")

    @property
    def results(self) -> Path:
        """A table of the records of the plan's runs, derived."""
        return self.path / "results.csv"

    @property
    def fit(self) -> Path:
        """The fitted law."""
        return self.path / "fit.json"

    @property
    def report(self) -> Path:
        """The report's folder."""
        return self.path / "report"

    def run(self, run_id: str) -> RunFolder:
        """Folder of one run."""
        return RunFolder(self.path / "runs" / run_id)

    def prepare(self) -> None:
        """Make the folder, and see that it can be written.

        Raises:
            SweepFolderError: It cannot.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.path / "runs"):
                folder.mkdir(mode=OWN_FOLDER, exist_ok=True)
        except OSError as error:
            raise SweepFolderError(
                f"{self.path}: cannot be made or written: {error.strerror}; change output_root, or free the folder"
            ) from None
        probe = self.path / f".probe.{os.getpid()}"
        atomic_write(probe, b"")
        probe.unlink()

    def records(self) -> Iterator[RunRecord]:
        """All records, by run id.

        Raises:
            RecordError: A record is damaged.
        """
        for folder in sorted((self.path / "runs").glob("*/")):
            record = RunFolder(folder).read_record()
            if record is not None:
                yield record

    def other_runs(self, known: Collection[str]) -> list[str]:
        """Ids of the runs that have ended in this folder, those in `known` left out."""
        ended = sorted(path.parent.name for path in (self.path / "runs").glob("*/record.json"))
        return [run_id for run_id in ended if run_id not in known]

    def log_event(self, kind: str, **details: Any) -> None:
        """Append to `events.jsonl`."""
        self.events.append({"time": time.time(), "event": kind, **details})

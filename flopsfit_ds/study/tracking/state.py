"""What a tracker was told so far: a file for each, read again when a sweep goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from flopsfit_ds.base.errors import RecordError
from flopsfit_ds.base.storage import json_converter, read_json, write_json
from flopsfit_ds.records import SweepFolder


@dataclass
class TrackedRun:
    """What was told of one run.

    Attributes:
        step: Last optimiser step that was sent.
        handle: How the tracker calls the run, where it chooses that itself.
        finished_at: Of the record that was sent; None as long as the run goes on.
    """

    step: int = 0
    handle: str | None = None
    finished_at: float | None = None


@dataclass
class TrackerState:
    """What one tracker was told.

    Attributes:
        runs: By run id.
        report: Hash of the page that was sent.
        problem: Why no more could be sent; None where all went well.
    """

    runs: dict[str, TrackedRun] = field(default_factory=dict)
    report: str | None = None
    problem: str | None = None

    @staticmethod
    def read(folder: SweepFolder, name: str) -> TrackerState:
        """What lies in the folder; nothing where there is none, or none that can be read."""
        try:
            return json_converter(TrackerState).validate_python(read_json(_file(folder, name)))
        except (FileNotFoundError, RecordError, ValidationError):
            return TrackerState()

    def write(self, folder: SweepFolder, name: str) -> None:
        """Keep it.

        Raises:
            SweepFolderError: The folder cannot be written.
        """
        write_json(_file(folder, name), json_converter(TrackerState).dump_python(self, mode="json"), durable=False)


def folder_of(folder: SweepFolder) -> Path:
    """Where trackers keep what belongs to a sweep."""
    return folder.path / "trackers"


def _file(folder: SweepFolder, name: str) -> Path:
    return folder_of(folder) / f"{name}.json"

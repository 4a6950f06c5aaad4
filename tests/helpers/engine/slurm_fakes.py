"""Programs that answer in SLURM's place, for states that no cluster of two nodes comes to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flopsfit_ds.engine.disk.attempts import open_attempt
from flopsfit_ds.engine.executor import Assignment
from flopsfit_ds.records import RunFolder
from helpers.engine.ways import layout


class FakeSlurm:
    """`sbatch` numbers jobs from 11 and starts nothing; the others say what they are told to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        self.answer("srun", "exit 0")
        self.answer("sinfo", "echo 'main* infinite'")
        self.answer("squeue", "exit 0")
        self.answer("sacct", "exit 0")
        self.answer("sbatch", f"echo >>{folder}/submitted; n=$(wc -l <{folder}/submitted)",
                    "echo Submitted batch job $((10 + n))")  # fmt: skip

    def answer(self, program: str, *lines: str) -> None:
        """Let a program do this from now on."""
        draft = self.folder / f".{program}"
        draft.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        draft.chmod(0o755)
        draft.rename(self.folder / program)

    @property
    def num_submitted(self) -> int:
        """Jobs that were submitted."""
        submitted = self.folder / "submitted"
        return len(submitted.read_text().splitlines()) if submitted.exists() else 0


def begin_attempt(run_folder: str) -> None:
    """What a job does first with a run, unless the run is recorded."""
    folder = RunFolder(Path(run_folder))
    if not folder.record.exists():
        open_attempt(folder, Assignment(folder.path.name, layout(1, micro_batch=1), ()))


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """SLURM's programs, on PATH before any real ones; polled without pauses."""
    monkeypatch.setattr("flopsfit_ds.engine.slurm.executor._POLL_SECONDS", 0.05)
    return FakeSlurm(tmp_path / "slurm", monkeypatch)

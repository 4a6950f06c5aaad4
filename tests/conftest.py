"""Settings for all tests: one thread a process, reproducible examples, no launcher's variables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

from helpers.fault_table import faults, pytest_terminal_summary
from helpers.sweeps import write_bytes_corpus

__all__ = ["faults", "pytest_terminal_summary"]

settings.register_profile("flopsfit-ds", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("flopsfit-ds")


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """A folder with `corpus.txt`: 200,000 bytes of text that a small model can learn."""
    write_bytes_corpus(tmp_path / "corpus.txt")
    return tmp_path

"""Settings for all tests: one thread a process, reproducible examples, no launcher's variables."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes start, and need not compile the same again

from hypothesis import settings

from helpers.fault_table import faults, pytest_terminal_summary
from helpers.sweeps import write_bytes_corpus

__all__ = ["faults", "pytest_terminal_summary"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all`: also what is long by nature."""
    parser.addoption("--all", action="store_true", help="also run the tests marked `long`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long, unless it is asked for; files with most slow tests first, so that none ends alone."""
    if not config.getoption("--all") and "long" not in config.getoption("markexpr"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    weights = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -weights[item.path])


settings.register_profile("flopsfit-ds", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("flopsfit-ds")


@pytest.fixture(scope="session")
def simulations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all that simulate, in all processes of these tests: the self-test of the installed versions once."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "simulations"


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """A folder with `corpus.txt`: 200,000 bytes of text that a small model can learn."""
    write_bytes_corpus(tmp_path / "corpus.txt")
    return tmp_path

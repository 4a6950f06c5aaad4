"""Settings for all tests: one thread a process, reproducible examples, no launcher's variables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes start, and need not compile the same again

from hypothesis import settings

from flopsfit_ds.simulate.server import SimulationServer
from helpers.fault_table import faults, pytest_terminal_summary
from helpers.sweeps import write_bytes_corpus

__all__ = ["faults", "pytest_terminal_summary"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all`: also what is long by nature."""
    parser.addoption("--all", action="store_true", help="also run the tests marked `long`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long, unless it is asked for, and put files in the order in which processes take them.

    Those with most slow tests come first, so that none ends alone; of the others folders have one each in turn, so that
    those that wait run beside those that compute.
    """
    if not config.getoption("--all") and "long" not in config.getoption("markexpr"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    weights = Counter(item.path for item in items if item.get_closest_marker("slow"))
    turns: Counter[Path] = Counter()
    turn_of: dict[Path, int] = {}
    for path in dict.fromkeys(item.path for item in items):
        turn_of[path] = turns[path.parent]
        turns[path.parent] += 1
    items.sort(key=lambda item: (-weights[item.path], turn_of[item.path]))


settings.register_profile("flopsfit-ds", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("flopsfit-ds")


@pytest.fixture(scope="session")
def simulations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all that simulate, in all processes of these tests: the self-test of the installed versions once."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "simulations"


class _OneProcess:
    """The process of all simulations of these tests, started by the first that asks and left running by all."""

    def __init__(self) -> None:
        self.server: SimulationServer | None = None

    def __call__(self) -> _OneProcess:
        if self.server is None:
            self.server = SimulationServer()
        return self

    def submit(self, function: str, argument: Any) -> Future[Any]:
        assert self.server is not None
        return self.server.submit(function, argument)

    def close(self) -> None:
        """Left to the end of the session."""


@pytest.fixture(scope="session")
def _one_process() -> Iterator[_OneProcess]:
    one = _OneProcess()
    yield one
    if one.server is not None:
        one.server.close()


@pytest.fixture(scope="module")
def one_simulation_process(_one_process: _OneProcess, simulations: Path) -> Iterator[None]:
    """Simulators of a module's tests share the session's cache and process, whose start costs seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(simulations))
        patch.setattr("flopsfit_ds.simulate.estimate.SimulationServer", _one_process)
        yield


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """A folder with `corpus.txt`: 200,000 bytes of text that a small model can learn."""
    write_bytes_corpus(tmp_path / "corpus.txt")
    return tmp_path

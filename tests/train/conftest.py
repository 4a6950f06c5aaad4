"""One server for the ranks of all training tests, and finished runs that several tests look at."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flopsfit_ds.train.order import EXIT_PREEMPTED
from helpers.sweeps import plan_of, with_values, write_bytes_corpus
from helpers.train.ranks import CURVE, Attempt, Layout, RankServer, bench_of, start, workload_of


@pytest.fixture(scope="session")
def server() -> Iterator[RankServer]:
    """The server of rank processes."""
    server = RankServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def trained(server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Attempt]:
    """Train a point of 50 steps, with changes, in a layout; the same call is trained once a session."""
    base = tmp_path_factory.mktemp("trained")
    write_bytes_corpus(base / "corpus.txt")
    known: dict[Any, Attempt] = {}

    def train(layout: Layout, **changes: Any) -> Attempt:
        key = (layout, repr(sorted(changes.items())))
        if key not in known:
            plan = plan_of(with_values(CURVE, **changes), base)
            run = plan.runs[0]
            attempt = start(server, run, workload_of(plan, run, base), base / f"run-{len(known)}", layout)
            codes = attempt.wait()
            assert codes == [0] * layout.world_size, attempt.logs()
            known[key] = attempt
        return known[key]

    return train


@pytest.fixture(scope="session")
def stopped(server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that was stopped at about step 10 in a layout; the same call is trained once."""
    known: dict[Any, Path] = {}

    def stop(layout: Layout, workload: type | None = None, **changes: Any) -> Path:
        key = (layout, workload, repr(changes))
        if key not in known:
            folder = tmp_path_factory.mktemp("stopped")
            bench = bench_of(server, folder, layout, workload, **changes)
            attempt = bench.stop_at(10, signal.SIGTERM)
            assert attempt.codes == [EXIT_PREEMPTED] * layout.world_size, attempt.logs()
            known[key] = folder / "run"
        return known[key]

    return stop

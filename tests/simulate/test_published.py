"""The simulation against peaks that others measured on four H100 (scripts/bench_memory.py says where)."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flopsfit_ds.simulate import Simulator


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["one", "every"])
def test_published_peaks_of_zero3_are_met_within_half_a_percent(monkeypatch, every):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    bench = importlib.import_module("bench_memory")
    rows = bench.PUBLISHED if every else [next(row for row in bench.PUBLISHED if row.model == "254M")]
    with Simulator(use_cache=False) as simulator, ThreadPoolExecutor(len(rows)) as threads:
        found = list(threads.map(lambda row: bench.simulate_published(row, simulator), rows))
    for row, (peak, allocated, _) in zip(rows, found, strict=True):
        assert peak == pytest.approx(row.peak_gib, rel=0.005), row.name
        assert allocated == pytest.approx(row.allocated_gib, rel=0.005), row.name

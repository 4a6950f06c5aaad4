"""What a SLURM job does before its runs: takes their leases, from a node that failed if need be."""

from __future__ import annotations

import threading
import time

import pytest

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.base.storage import read_json, write_json
from flopsfit_ds.engine.disk.lease import LeaseSet
from flopsfit_ds.records import SweepFolder

RUNS = tuple(f"run{number}" for number in range(12))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sweep's folder with runs, and leases that are stale after three seconds."""
    monkeypatch.setenv("FLOPSFIT_DS_STALE_SECONDS", "3")
    folder = SweepFolder(tmp_path)
    folder.prepare()
    for run_id in RUNS:
        folder.run(run_id).path.mkdir()
    return folder


def test_the_leases_of_a_failed_node_are_waited_for_together(folder):
    holder = LeaseSet(folder, RUNS)
    holder.release()
    for run_id in RUNS:
        path = folder.run(run_id).path / "leases" / "1"
        lease = read_json(path)
        lease["process"]["host"] = "node17/gone/1"
        write_json(path, {**lease, "released": False})
    began = time.monotonic()
    LeaseSet(folder, RUNS).release()
    assert 3.0 <= time.monotonic() - began < 30.0, "one after another they take 36 s"


def test_all_leases_or_none(folder):
    other = LeaseSet(folder, RUNS[5:6])
    before = threading.active_count()
    with pytest.raises(SweepFolderError, match="is at work on this sweep"):
        LeaseSet(folder, RUNS)
    assert threading.active_count() == before, "what was taken is given back"
    other.release()
    LeaseSet(folder, RUNS).release()

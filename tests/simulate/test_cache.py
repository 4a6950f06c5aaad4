"""The cache of simulations: what is kept, and machines on which nothing can be kept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flopsfit_ds.simulate import cache
from flopsfit_ds.simulate.cache import cache_folder, load_result, store_result

NOBODY = 65534


@pytest.fixture(autouse=True)
def first_warning(monkeypatch):
    cache._warned.clear()
    yield
    cache._warned.clear()


def a_file_in_its_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")


def a_user_without_a_home(monkeypatch, tmp_path):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987654321)


def a_folder_of_somebody_else(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_folder().mkdir(parents=True)
    (cache_folder() / "key.json").write_text("{}")
    tmp_path.chmod(0o000)


@pytest.mark.parametrize("broken", [a_file_in_its_place, a_user_without_a_home, a_folder_of_somebody_else])
def test_a_cache_that_cannot_be_used_is_warned_of_once(monkeypatch, tmp_path, caplog, broken):
    broken(monkeypatch, tmp_path)
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(NOBODY)
    try:
        for _ in range(2):
            assert load_result("key") is None
            store_result("key", {"peak_bytes": 1})
    finally:
        os.seteuid(mine)
        tmp_path.chmod(0o700)
    (record,) = caplog.records
    assert record.getMessage().startswith("simulations of memory are not kept (")


def test_what_is_stored_is_found_and_what_is_torn_is_not(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_result("key") is None
    store_result("key", {"peak_bytes": 1})
    assert load_result("key") == {"peak_bytes": 1}
    for torn in (b'{"peak', b"\xff\xfe\x00"):
        (cache_folder() / "key.json").write_bytes(torn)
        assert load_result("key") is None
    assert not caplog.records


@pytest.mark.slow
def test_estimate_memory_answers_without_a_cache():
    shape = "--layers=1 --hidden=64 --heads=2 --vocab=256 --seq=32 --micro-batch=1 --zero 0 --gpus 1"
    answer = subprocess.run(
        [sys.executable, "-m", "flopsfit_ds.cli.main", "estimate-memory", *shape.split()],
        env={**os.environ, "XDG_CACHE_HOME": "/dev/null"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "peak allocated" in answer.stdout
    assert answer.stderr.count("simulations of memory are not kept") == 1

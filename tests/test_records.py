"""Records: a kill at any moment loses nothing, damage is noticed, and a table holds planned beside observed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flopsfit_ds.base.errors import RecordError, SweepFolderError
from flopsfit_ds.base.storage import JsonLines, atomic_write, read_json, write_json
from flopsfit_ds.engine.disk.results import records_csv
from flopsfit_ds.records import RunFolder, SweepFolder
from helpers.run_records import ATTEMPT, OBSERVED, RECORD

ANY_RECORD = st.builds(
    dataclasses.replace,
    st.just(RECORD),
    label=st.text(max_size=20),
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    reason=st.none() | st.text(max_size=50),
    observed=st.sampled_from([None, OBSERVED]),
    attempts=st.sampled_from([(), (ATTEMPT,), (ATTEMPT, ATTEMPT)]),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@shared_folder
@given(ANY_RECORD)
def test_a_record_is_read_back_equal_bit_by_bit(tmp_path, record):
    folder = SweepFolder(tmp_path).run("r")
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_record(record)
    assert folder.read_record() == record


@shared_folder
@given(json_values, st.data())
def test_a_changed_byte_never_yields_other_content(tmp_path, value, data):
    path = tmp_path / "value.json"
    write_json(path, value, durable=False)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = read_json(path)
    except RecordError:
        return
    assert json.dumps(found) == json.dumps(value)  # only white space was hit


@shared_folder
@given(json_values, st.data())
def test_a_file_cut_short_is_noticed(tmp_path, value, data):
    path = tmp_path / "value.json"
    write_json(path, value, durable=False)
    content = path.read_bytes().rstrip()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(RecordError, match=r"value\.json"):
        read_json(path)


def test_a_record_of_another_kind_is_damage_and_none_is_none(tmp_path):
    folder = SweepFolder(tmp_path).run("r")
    assert folder.read_record() is None
    folder.path.mkdir(parents=True)
    write_json(folder.record, {"run_id": "x"})
    with pytest.raises(RecordError, match="not a record of this version"):
        folder.read_record()


def test_what_json_cannot_hold_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import flopsfit_ds.base.storage as storage

step, path = int(sys.argv[1]), Path(sys.argv[2])
calls = 0

def counted(function):
    def call(*arguments, **named):
        global calls
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return function(*arguments, **named)
    return call

for owner, name in ((os, "fsync"), (os, "open"), (Path, "open"), (Path, "replace")):
    setattr(owner, name, counted(getattr(owner, name)))
storage.write_json(path, {"generation": 2, "filler": "x" * 100_000})
print(calls)
"""


def test_a_kill_at_any_step_of_a_write_leaves_the_old_content_or_the_new(tmp_path):
    path = tmp_path / "record.json"
    generations = []
    for step in range(20):
        write_json(path, {"generation": 1})
        result = subprocess.run(
            [sys.executable, "-c", KILLED, str(step), str(path)], capture_output=True, text=True, check=False
        )
        generations.append(read_json(path)["generation"])
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL, result.stderr
    assert generations[0] == 1
    assert generations[-1] == 2
    assert generations == sorted(generations)
    assert len(generations) >= 5  # open, fsync, replace, open and fsync of the folder, and one that ran through


def test_a_folder_that_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SweepFolderError, match=r"change output_root"):
        SweepFolder(tmp_path / "file" / "sweep").prepare()
    with pytest.raises(SweepFolderError, match=r"cannot be written: No such file.*make its folder first"):
        atomic_write(tmp_path / "missing" / "x", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_noticed_before_any_training(tmp_path):
    (tmp_path / "runs").mkdir()
    tmp_path.chmod(0o500)
    with pytest.raises(SweepFolderError, match="cannot be written"):
        SweepFolder(tmp_path).prepare()


class TestJsonLines:
    @shared_folder
    @given(st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=5), st.data())
    def test_damage_costs_only_the_lines_it_hits(self, tmp_path, values, data):
        lines = JsonLines(tmp_path / "lines.jsonl")
        lines.replace(values)
        assert lines.read() == values
        content = lines.path.read_bytes()
        if not content:
            return
        position = data.draw(st.integers(0, len(content) - 1))
        hit = content[:position].count(b"\n")
        lines.path.write_bytes(content[:position] + b"\x00" + content[position + 1 :])
        found = lines.read()
        lost = {hit, hit + 1} if content[position : position + 1] == b"\n" else {hit}
        assert found == [value for number, value in enumerate(values) if number not in lost]
        assert lines.num_damaged >= 1

    def test_a_line_torn_by_a_kill_does_not_swallow_the_next(self, tmp_path):
        lines = JsonLines(tmp_path / "lines.jsonl")
        lines.append({"step": 1})
        lines.append({"step": 2})
        content = lines.path.read_bytes()
        lines.path.write_bytes(content[:-4])
        lines.append({"step": 3})
        assert lines.read() == [{"step": 1}, {"step": 3}]
        assert lines.num_damaged == 1
        assert lines.last() == {"step": 3}

    def test_the_last_line_is_found_without_the_whole_file(self, tmp_path):
        lines = JsonLines(tmp_path / "lines.jsonl")
        assert lines.last() is None
        assert lines.read() == []
        lines.extend([{"step": step} for step in range(2000)])
        assert lines.last() == {"step": 1999}
        lines.path.write_bytes(lines.path.read_bytes() + b"deadbeef {torn")
        assert lines.last() == {"step": 1999}

    def test_several_processes_may_append_at_once(self, tmp_path):
        path = tmp_path / "events.jsonl"
        code = (
            "import sys; from pathlib import Path; from flopsfit_ds.base.storage import JsonLines\n"
            "for n in range(300): JsonLines(Path(sys.argv[1])).append({'who': sys.argv[2], 'n': n, 'pad': 'x' * 500})"
        )
        writers = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in "ab"]
        assert [writer.wait() for writer in writers] == [0, 0]
        lines = JsonLines(path)
        found = lines.read()
        assert lines.num_damaged == 0
        for who in "ab":
            assert [line["n"] for line in found if line["who"] == who] == list(range(300))


class TestTable:
    def test_planned_stands_beside_observed_and_nothing_is_invented(self):
        rows = list(csv.DictReader(io.StringIO(records_csv([RECORD, dataclasses.replace(RECORD, observed=None)]))))
        assert (rows[0]["planned_zero_stage"], rows[0]["observed_zero_stage"]) == ("2", "2")
        assert (rows[0]["planned_peak_memory_bytes"], rows[0]["observed_peak_memory_bytes"]) == ("4096", "")
        assert float(rows[0]["loss"]) == RECORD.loss
        assert rows[0]["num_attempts"] == "1"
        assert all(value == "" for name, value in rows[1].items() if name.startswith("observed_"))

    @given(st.text(max_size=30), st.floats(allow_nan=False, allow_infinity=False))
    def test_labels_and_losses_survive_the_table_exactly(self, label, loss):
        label = label.replace("\r", "").replace("\x00", "")  # csv itself has no way to hold these
        record = dataclasses.replace(RECORD, label=label, loss=loss)
        row = next(csv.DictReader(io.StringIO(records_csv([record]), newline="")))
        assert (row["label"], float(row["loss"])) == (label, loss)


def test_records_of_a_sweep_come_in_the_order_of_their_ids(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.prepare()
    for run_id in ("bb", "aa", "cc"):
        folder.run(run_id).path.mkdir()
    for run_id in ("cc", "aa"):
        folder.run(run_id).write_record(dataclasses.replace(RECORD, run_id=run_id))
    assert [record.run_id for record in folder.records()] == ["aa", "cc"]


def test_a_file_is_replaced_and_never_written_over(tmp_path):
    """Whoever has the old one open, or linked, keeps all of it."""
    path, kept = tmp_path / "record.json", tmp_path / "kept.json"
    write_json(path, {"loss": 3.0})
    os.link(path, kept)
    write_json(path, {"loss": 2.5})
    assert (read_json(kept), read_json(path)) == ({"loss": 3.0}, {"loss": 2.5})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": "2.5"}, "loss is '2.5'"),
        ({"loss": True}, "loss is True"),
        ({"loss_standard_error": [0.1]}, "loss_standard_error is"),
        ({"version": 2}, "a record of version 2; this program knows version 1"),
    ],
)
def test_a_record_of_another_version_or_with_impossible_values_is_refused_by_name(tmp_path, changed, said):
    folder = RunFolder(tmp_path)
    folder.write_record(RECORD)
    write_json(folder.record, {**read_json(folder.record), **changed})
    with pytest.raises(RecordError, match=said) as refused:
        folder.read_record()
    assert str(folder.record) in str(refused.value)


def test_a_record_is_read_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    folder = SweepFolder(tmp_path).run("r")
    folder.path.mkdir(parents=True)
    reads = []
    monkeypatch.setattr("flopsfit_ds.records.folder.read_json", lambda path: reads.append(path) or read_json(path))
    folder.write_record(RECORD)
    assert folder.read_record() == folder.read_record() == RECORD
    assert len(reads) == 2, "a file that has just been written may change within one tick of its clock"
    os.utime(folder.record, (1e9, 1e9))
    assert folder.read_record() == folder.read_record() == RECORD
    assert len(reads) == 3
    content = folder.record.read_bytes()
    folder.record.write_bytes(content.replace(b"1.25", b"1.35"))
    with pytest.raises(RecordError, match="altered"):
        folder.read_record()
    folder.record.unlink()
    assert folder.read_record() is None

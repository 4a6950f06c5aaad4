"""The disk fills up, turns read-only or vanishes; files are torn or altered: the last good state is kept, and said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from flopsfit_ds.base.errors import RecordError, SweepFolderError
from flopsfit_ds.base.storage import write_json
from flopsfit_ds.engine import give_another_chance, read_plan
from flopsfit_ds.engine.disk.folder import write_plan
from flopsfit_ds.engine.disk.lease import Lease
from flopsfit_ds.records import SweepFolder
from helpers.engine.drivers import finish, let_go, processes_of, start, sweep_folder, wait_until_held
from helpers.engine.toy import CHECKPOINT_STEPS, steps_trained_twice, undisturbed_loss


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        os.getuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 4096)
        except OSError:
            pass


def test_a_disk_that_fills_up(small_disk, tmp_path, faults):
    faults.inject("disk full")
    (tmp_path / "outputs").symlink_to(small_disk)
    process = start(tmp_path, 2, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path, 2)
    fill(small_disk)
    let_go(tmp_path)
    assert process.wait(120) == 2, (tmp_path / "log.txt").read_text()
    assert "No space left on device" in (tmp_path / "log.txt").read_text()
    assert processes_of(tmp_path) == []
    (small_disk / "filler").unlink()
    records = finish(tmp_path, 2, "[1]", 2, 0.01)
    assert all(record.attempts[-1].start_step >= 5 for record in records), "the last good checkpoint was kept"
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("disk full", cost, allowed=2 * CHECKPOINT_STEPS)


def test_a_disk_that_holds_no_file_more(small_disk, tmp_path, faults):
    """It has room for bytes, and none for names: nothing new can be made, what is open can still be written."""
    faults.inject("disk full: no file more")
    (tmp_path / "outputs").symlink_to(small_disk)
    process = start(tmp_path, 2, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path, 2)
    subprocess.run(["mount", "-o", f"remount,nr_inodes={num_inodes(small_disk)}", str(small_disk)], check=True)
    let_go(tmp_path)
    assert process.wait(120) == 2, (tmp_path / "log.txt").read_text()
    assert "No space left on device" in (tmp_path / "log.txt").read_text()
    assert processes_of(tmp_path) == []
    subprocess.run(["mount", "-o", "remount,nr_inodes=4096", str(small_disk)], check=True)
    records = finish(tmp_path, 2, "[1]", 2, 0.01)
    assert all(record.attempts[-1].start_step >= 5 for record in records), "the last good checkpoint was kept"
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("disk full: no file more", cost, allowed=2 * CHECKPOINT_STEPS)


def num_inodes(folder):
    """Files, folders and links that a file system holds."""
    found = os.statvfs(folder)
    return found.f_files - found.f_ffree


def test_a_folder_that_turns_read_only_in_the_middle(small_disk, tmp_path, faults):
    faults.inject("read-only folder")
    (tmp_path / "outputs").symlink_to(small_disk)
    process = start(tmp_path, 2, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path, 2)
    with read_only(small_disk):
        let_go(tmp_path)
        assert process.wait(120) == 2, (tmp_path / "log.txt").read_text()
        assert "Read-only file system" in (tmp_path / "log.txt").read_text()
        assert processes_of(tmp_path) == []
    records = finish(tmp_path, 2, "[1]", 2, 0.01)
    assert all(record.attempts[-1].start_step >= 5 for record in records), "the last good checkpoint was kept"
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("read-only folder", cost, allowed=2 * CHECKPOINT_STEPS)


@contextmanager
def read_only(folder):
    """Mount a folder over itself: whoever opens a file in it from now on may only read."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_that_is_read_only_from_the_start(small_disk, tmp_path, faults):
    faults.inject("read-only folder")
    (tmp_path / "outputs").symlink_to(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert start(tmp_path, 1, "[1]", 2, 0.0).wait(120) == 2
    assert "Read-only file system; change output_root" in (tmp_path / "log.txt").read_text()
    faults.cost("read-only folder", steps_trained_twice(sweep_folder(tmp_path).path), allowed=0)


def test_a_folder_that_vanishes_is_said_and_not_made_again(tmp_path, faults):
    faults.inject("a folder that vanishes")
    process = start(tmp_path, 3, "[1]", 2, 0.0, held=True)
    wait_until_held(tmp_path, 2)
    sweep_folder(tmp_path).path.rename(tmp_path / "elsewhere")
    let_go(tmp_path)
    assert process.wait(120) == 2
    assert "No such file or directory" in (tmp_path / "log.txt").read_text()
    assert not sweep_folder(tmp_path).path.exists()
    (tmp_path / "elsewhere").rename(sweep_folder(tmp_path).path)
    finish(tmp_path, 3, "[1]", 2, 0.01)
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    faults.cost("a folder that vanishes", cost, allowed=2 * CHECKPOINT_STEPS)


@pytest.mark.parametrize("damage", ["torn", "bit flipped", "empty"])
def test_a_damaged_record_is_put_aside_and_written_again_without_training(make_plan, run_toys, faults, damage):
    faults.inject("damaged record")
    plan = make_plan(2)
    before = run_toys(plan)
    path = plan.folder / "runs" / before[0].run_id / "record.json"
    content = bytearray(path.read_bytes())
    if damage == "bit flipped":
        content[content.index(b'"loss": 0') + 9] ^= 1
    path.write_bytes({"torn": content[: len(content) // 2], "bit flipped": content, "empty": b""}[damage])
    after = run_toys(plan)
    assert [record.loss for record in after] == [undisturbed_loss()] * 2
    assert [len(record.attempts) for record in after] == [1, 1], "nothing was trained again"
    events = [json.loads(line) for line in (plan.folder / "events.jsonl").read_text().splitlines()]
    assert [event["run_id"] for event in events if event["event"] == "damaged"] == [before[0].run_id]
    faults.cost("damaged record", steps_trained_twice(plan.folder), allowed=0)


def test_a_damaged_record_of_a_run_that_is_no_longer_planned_is_passed_over(make_plan, run_toys, caplog):
    plan = make_plan(3)
    gone, *others = run_toys(plan)
    path = plan.folder / "runs" / gone.run_id / "record.json"
    path.write_bytes(path.read_bytes()[:100])
    smaller = replace(plan, runs=plan.runs[1:])
    assert [record.run_id for record in run_toys(smaller)] == [record.run_id for record in others]
    rows = (plan.folder / "results.csv").read_text().splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == [record.run_id for record in others]
    assert give_another_chance(SweepFolder(plan.folder)) == []
    assert f"{path}: torn" in caplog.text


@pytest.mark.parametrize("damage", ["torn", "bit flipped"])
def test_a_damaged_plan_is_told_and_written_again(make_plan, run_toys, faults, damage):
    faults.inject("damaged plan")
    plan = make_plan(1)
    before = run_toys(plan)
    path = plan.folder / "plan.json"
    content = bytearray(path.read_bytes())
    content[content.index(b'"num_params_total": ') + 21] ^= 1
    path.write_bytes(path.read_bytes()[: len(content) // 2] if damage == "torn" else content)
    with pytest.raises(RecordError, match="torn" if damage == "torn" else "altered after it was written"):
        read_plan(plan.folder)
    assert run_toys(plan) == before
    assert read_plan(plan.folder) == replace(plan, folder=plan.folder)
    faults.cost("damaged plan", steps_trained_twice(plan.folder), allowed=0)


def test_damaged_lines_of_events_and_metrics_are_passed_over_and_said(tmp_path, faults):
    faults.inject("damaged events line", times=2)
    faults.inject("damaged metrics line", times=2)
    process = start(tmp_path, 1, "[1]", 1, 0.0, held=True)
    wait_until_held(tmp_path)
    process.kill()
    process.wait()
    (metrics,) = sweep_folder(tmp_path).path.glob("runs/*/metrics.jsonl")
    for path in (metrics, sweep_folder(tmp_path).events.path):
        content = bytearray(path.read_bytes())
        content[15] ^= 1
        path.write_bytes(content + b'deadbeef {"torn')
    (record,) = finish(tmp_path, 1, "[1]", 1, 0.01)
    log = (tmp_path / "log.txt").read_text()
    for path in (metrics, sweep_folder(tmp_path).events.path):
        assert f"{path}: 2 damaged lines are passed over" in log
    lines = sweep_folder(tmp_path).run(record.run_id).metrics
    assert [line["step"] for line in lines.read()] == list(range(2, 21))
    assert lines.num_damaged == 0
    cost = steps_trained_twice(sweep_folder(tmp_path).path)
    for name in ("damaged events line", "damaged metrics line"):
        faults.cost(name, cost, allowed=CHECKPOINT_STEPS)


def test_killed_at_every_step_of_writing_a_record(make_plan, run_toys, faults, monkeypatch):
    """Whatever call of the writing is the last, the next sweep ends with the same record."""
    import flopsfit_ds.base.storage as storage

    class KilledError(BaseException):
        pass

    for call in ("write", "rename", "return"):
        plan = make_plan(1)
        shutil.rmtree(plan.folder, ignore_errors=True)

        original = storage.atomic_write

        def die(path, content, *, durable=True, call=call, original=original):
            if path.name != "record.json":
                return original(path, content, durable=durable)
            temporary = path.with_name(f".{path.name}.1.tmp")
            if call == "write":
                temporary.write_bytes(content.encode()[:40])
            elif call == "rename":
                temporary.write_bytes(content.encode())
            else:
                original(path, content, durable=False)
            raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(storage, "atomic_write", die)
            with pytest.raises(KilledError):
                run_toys(plan)
        faults.inject("SIGKILL while a record is written")
        (record,) = run_toys(plan)
        assert record.loss == undisturbed_loss()
        assert len(record.attempts) == 1, "a point whose loss was measured is not repeated"
        faults.cost("SIGKILL while a record is written", steps_trained_twice(plan.folder), allowed=0)


def test_a_lease_needs_no_locks_of_the_file_system(tmp_path, monkeypatch):
    def no_links(*_args, **_options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    lease = Lease.acquire(tmp_path / "leases")
    with pytest.raises(SweepFolderError, match="is at work on this sweep"):
        Lease.acquire(tmp_path / "leases")
    lease.release()
    second = Lease.acquire(tmp_path / "leases")
    assert second.number == lease.number + 1
    with pytest.raises(SweepFolderError, match="taken this sweep over"):
        lease.check()
    second.release()


def test_a_clock_set_back_takes_no_lease_away(tmp_path, monkeypatch, faults):
    faults.inject("clock set forth and back")
    lease = Lease.acquire(tmp_path / "leases")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(SweepFolderError):
        Lease.acquire(tmp_path / "leases", stale_seconds=0.5)
    lease.check()
    lease.release()


def test_a_lease_of_another_machine_is_taken_over_when_its_counter_stands_still(tmp_path, faults):
    faults.inject("a stale lease")
    first = Lease.acquire(tmp_path / "leases")
    first.release()
    path = tmp_path / "leases" / str(first.number)
    document = json.loads(path.read_text())["content"]
    document["released"] = False
    document["process"]["host"] = "another/boot/1"
    write_json(path, document)
    began = time.monotonic()
    second = Lease.acquire(tmp_path / "leases", stale_seconds=1.0)
    assert time.monotonic() - began >= 1.0
    second.release()


def test_plans_that_say_the_same_are_not_written_again_and_damaged_ones_are(make_plan):
    plan = make_plan(3)
    folder = SweepFolder(plan.folder)
    folder.prepare()
    write_plan(plan, folder)
    files = [folder.plan, *(folder.run(run.run_id).plan for run in plan.runs)]
    before = [path.read_bytes() for path in files]
    inodes = [path.stat().st_ino for path in files]
    files[1].write_bytes(before[1][:-40])
    files[2].write_bytes(before[2].replace(b'"seed": 0', b'"seed": 1'))
    write_plan(plan, folder)
    assert [path.read_bytes() for path in files] == before
    again = [path.stat().st_ino for path in files]
    assert (again[0], again[3]) == (inodes[0], inodes[3]), "they were left alone"

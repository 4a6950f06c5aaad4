"""How jobs end, as SLURM says it, and what happens when it says nothing."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from flopsfit_ds.base.errors import LaunchError, SweepFolderError
from flopsfit_ds.engine.disk.attempts import read_attempts
from flopsfit_ds.engine.disk.lease import Lease
from flopsfit_ds.engine.slurm.executor import find_partition
from flopsfit_ds.engine.slurm.states import ENDED, JobStates
from flopsfit_ds.records import RunFolder, SweepFolder
from helpers.engine.slurm_fakes import fake_slurm

__all__ = ["fake_slurm"]


def test_a_job_that_the_controller_shows_has_its_state_and_others_that_of_the_accounts(fake_slurm):
    fake_slurm.answer("squeue", "echo '11|RUNNING'; echo '12|COMPLETING'; echo '13|PREEMPTED'; echo '99|PENDING'")
    fake_slurm.answer("sacct", "echo '14|CANCELLED by 0'; echo '15|REVOKED'; echo '16|RUNNING'")
    states = JobStates().ask(["11", "12", "13", "14", "15", "16", "17"])
    assert states == {
        "11": "RUNNING", "12": "COMPLETING", "13": "PREEMPTED", "14": "CANCELLED", "15": "REVOKED",
        "16": "GONE", "17": "GONE",
    }  # fmt: skip
    assert {job for job, state in states.items() if state in ENDED} == {"13", "14", "15", "16", "17"}


def test_without_accounting_a_job_that_the_controller_has_forgotten_has_ended(fake_slurm):
    fake_slurm.answer("sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    assert JobStates().ask(["11"])["11"] in ENDED


def test_a_cluster_without_sacct_is_a_cluster(fake_slurm, monkeypatch):
    (fake_slurm.folder / "sacct").unlink()
    monkeypatch.setenv("PATH", f"{fake_slurm.folder}:/bin")
    assert find_partition(None).name == "main"


@pytest.mark.parametrize("silence", ["exec sleep 60", "echo Unable to contact slurm controller >&2; exit 1"])
def test_a_silent_controller_is_waited_for_and_then_an_error(fake_slurm, monkeypatch, silence):
    limit = "flopsfit_ds.engine.slurm.states._TIMEOUT_SECONDS"
    monkeypatch.setattr(limit, 0.2)
    monkeypatch.setattr("flopsfit_ds.engine.slurm.states._PATIENCE_SECONDS", 1000.0)
    states = JobStates()
    fake_slurm.answer("squeue", silence)
    assert states.look(["11"]) is None
    fake_slurm.answer("squeue", "echo '11|RUNNING'")
    with monkeypatch.context() as patch:
        patch.setattr(limit, 60.0)  # also on a machine that is busy with other things
        assert states.look(["11"]) == {"11": "RUNNING"}
    fake_slurm.answer("squeue", silence)
    assert states.look(["11"]) is None
    monkeypatch.setattr("flopsfit_ds.engine.slurm.states._PATIENCE_SECONDS", 0.0)
    with pytest.raises(LaunchError, match=r"SLURM has not answered .* the same command takes them up"):
        states.look(["11"])


def test_a_silent_sinfo_is_an_error_of_one_line(fake_slurm, monkeypatch):
    monkeypatch.setattr("flopsfit_ds.engine.slurm.states._TIMEOUT_SECONDS", 0.2)
    fake_slurm.answer("sinfo", "exec sleep 60")
    with pytest.raises(LaunchError, match="sinfo has not answered"):
        find_partition(None)


def test_jobs_lost_before_a_run_began_are_no_failures_of_it_and_end_with_an_error(fake_slurm, make_plan, run_toys):
    states = ["NODE_FAIL", "PREEMPTED", "TIMEOUT", "CANCELLED by 0", "BOOT_FAIL", "REVOKED"]
    fake_slurm.answer("sacct", *[f"echo '{11 + number}|{state}'" for number, state in enumerate(states)])
    plan = make_plan(2, slots=1)
    with pytest.raises(LaunchError, match=r"5 SLURM jobs in a row .* `sacct -j 11,12,13,14,15`.* same command again"):
        run_toys(plan, executor="slurm")
    assert fake_slurm.num_submitted == 5
    for run in plan.runs:
        attempts = read_attempts(RunFolder(plan.folder / "runs" / run.run_id))
        assert [attempt.outcome for attempt in attempts] == ["interrupted"] * 5
        assert attempts[4].reason == "SLURM job 15 ended as BOOT_FAIL"
    assert not list(SweepFolder(plan.folder).records()), "the same command goes on"


@pytest.mark.parametrize("accounting", ["echo Slurm accounting storage is disabled >&2; exit 1", "exit 0"])
def test_jobs_that_nobody_knows_any_more_are_not_waited_for(fake_slurm, make_plan, run_toys, accounting):
    fake_slurm.answer("sacct", accounting)
    with pytest.raises(LaunchError, match="ended as GONE"):
        run_toys(make_plan(1, slots=1), executor="slurm")


def test_a_job_that_fails_by_itself_counts_against_its_runs(fake_slurm, make_plan, run_toys):
    fake_slurm.answer("squeue", 'for n in 11 12 13 14; do echo "$n|FAILED"; done')
    (record,) = run_toys(make_plan(1, slots=1), executor="slurm")
    assert (record.status, fake_slurm.num_submitted) == ("failed", 3)
    assert "SLURM job 13 ended as FAILED" in record.reason


def test_jobs_in_which_a_run_gets_further_may_be_lost_without_end(fake_slurm, make_plan, run_toys, monkeypatch):
    """Four jobs of a step each, and then two without."""
    monkeypatch.setattr("flopsfit_ds.engine.slurm.executor._MAX_FUTILE_JOBS", 2)
    plan = make_plan(1, slots=1)
    metrics = plan.folder / "runs" / plan.runs[0].run_id / "metrics.jsonl"
    train = f"from flopsfit_ds.base.storage import *; JsonLines(Path({str(metrics)!r})).append({{'step': $n}})"
    fake_slurm.answer(
        "sacct", f"n=$(wc -l <{fake_slurm.folder}/submitted)", f'[ $n -gt 4 ] || {sys.executable} -c "{train}"',
        "for n in $(seq 11 40); do echo \"$n|NODE_FAIL\"; done",
    )  # fmt: skip
    with pytest.raises(LaunchError, match="2 SLURM jobs in a row"):
        run_toys(plan, executor="slurm")
    assert fake_slurm.num_submitted == 6


def test_a_run_is_not_blamed_for_another_of_its_job(fake_slurm, make_plan, run_toys):
    """The first of two begins, and each job ends for want of host memory."""
    plan = make_plan(2, slots=1)
    first, second = (RunFolder(plan.folder / "runs" / run.run_id) for run in plan.runs)
    begin = f"from helpers.engine.slurm_fakes import *; begin_attempt({str(first.path)!r})"
    fake_slurm.answer(
        "squeue", f'PYTHONPATH={Path(__file__).parents[2]} {sys.executable} -c "{begin}"',
        "for n in $(seq 11 40); do echo \"$n|OUT_OF_MEMORY\"; done",
    )  # fmt: skip
    records = {record.run_id: record for record in run_toys(plan, executor="slurm")}
    assert records[first.path.name].status == "failed"
    blamed = [attempt for attempt in read_attempts(second) if attempt.outcome == "killed"]
    assert len(blamed) == 3, "in jobs of its own, after the other was given up"
    assert len([attempt for attempt in read_attempts(second) if attempt.outcome == "interrupted"]) == 3


@pytest.mark.parametrize(
    ("executor", "blocked"),
    [("slurm", "slurm"), *itertools.product(("local", "slurm"), ("slurm/jobs.jsonl", "plan.json", "runs"))],
)
def test_what_lies_in_the_way_of_the_folder_is_one_line_for_slots_and_jobs(
    fake_slurm, make_plan, run_toys, executor, blocked
):
    """A file where a folder should be, or a folder where a file should be, at any step of a sweep's life."""
    plan = make_plan(1, slots=1)
    path = plan.folder / blocked
    path.parent.mkdir(parents=True)
    if path.suffix:
        path.mkdir()
    else:
        path.write_text("in the way")
    with pytest.raises(SweepFolderError, match=rf"^{plan.folder}[^\n]*$"):
        run_toys(plan, executor=executor)
    assert fake_slurm.num_submitted == 0
    Lease.acquire(plan.folder / "leases").release()  # the next driver is not refused

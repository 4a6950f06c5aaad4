"""How jobs end, as SLURM says it, and what happens when it says nothing."""

from __future__ import annotations

import pytest
from slurm_fakes import fake_slurm

from flopsfit_ds.engine.slurm_executor import find_partition
from flopsfit_ds.engine.slurm_states import ENDED, JobStates
from flopsfit_ds.errors import LaunchError

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
    monkeypatch.setattr("flopsfit_ds.engine.slurm_states._TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("flopsfit_ds.engine.slurm_states._PATIENCE_SECONDS", 1000.0)
    states = JobStates()
    fake_slurm.answer("squeue", silence)
    assert states.look(["11"]) is None
    fake_slurm.answer("squeue", "echo '11|RUNNING'")
    assert states.look(["11"]) == {"11": "RUNNING"}
    fake_slurm.answer("squeue", silence)
    assert states.look(["11"]) is None
    monkeypatch.setattr("flopsfit_ds.engine.slurm_states._PATIENCE_SECONDS", 0.0)
    with pytest.raises(LaunchError, match=r"SLURM has not answered .* the same command takes them up"):
        states.look(["11"])


def test_a_silent_sinfo_is_an_error_of_one_line(fake_slurm, monkeypatch):
    monkeypatch.setattr("flopsfit_ds.engine.slurm_states._TIMEOUT_SECONDS", 0.2)
    fake_slurm.answer("sinfo", "exec sleep 60")
    with pytest.raises(LaunchError, match="sinfo has not answered"):
        find_partition(None)


@pytest.mark.parametrize("state", ["PREEMPTED", "REVOKED", ""])
def test_a_sweep_whose_jobs_end_in_any_way_does_not_wait_for_them(fake_slurm, make_plan, run_toys, state):
    fake_slurm.answer("sacct", f'for n in $(seq 11 40); do echo "$n|{state}"; done' if state else "exit 1")
    (record,) = run_toys(make_plan(1, slots=1), executor="slurm")
    assert (record.status, fake_slurm.num_submitted) == ("failed", 3)

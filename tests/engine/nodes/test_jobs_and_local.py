"""A sweep that was given to a cluster is started here, while a job is still at work on it."""

from __future__ import annotations

import pytest

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.base.storage import JsonLines
from flopsfit_ds.engine.disk.lease import LeaseSet
from flopsfit_ds.records import SweepFolder


@pytest.fixture
def given_to_a_job(make_plan):
    """A plan of two points, the first of which was submitted as a job."""
    plan = make_plan(2)
    folder = SweepFolder(plan.folder)
    folder.prepare()
    (folder.path / "slurm").mkdir()
    JsonLines(folder.path / "slurm" / "jobs.jsonl").append(
        {"job_id": "7", "run_ids": [plan.runs[0].run_id], "name": "toy"}
    )
    return plan


def test_nothing_is_trained_that_a_job_trains(given_to_a_job, run_toys):
    plan = given_to_a_job
    job = LeaseSet(SweepFolder(plan.folder), (plan.runs[0].run_id,))
    try:
        with pytest.raises(SweepFolderError, match="go on with --executor slurm, or scancel it"):
            run_toys(plan)
    finally:
        job.release()
    assert not list(plan.folder.glob("runs/*/attempt-*"))
    assert [record.status for record in run_toys(plan)] == ["completed"] * 2, "once the job is gone"


def test_a_job_that_starts_later_finds_its_runs_taken(given_to_a_job, run_toys):
    plan, refused = given_to_a_job, []

    from flopsfit_ds.engine.progress import Silence

    class JobStarts(Silence):
        def on_start(self, run, slots):
            with pytest.raises(SweepFolderError, match="is at work on this sweep") as refusal:
                LeaseSet(SweepFolder(plan.folder), (plan.runs[0].run_id,))
            refused.append(refusal)

    assert [record.status for record in run_toys(plan, progress=JobStarts())] == ["completed"] * 2
    assert len(refused) == 2

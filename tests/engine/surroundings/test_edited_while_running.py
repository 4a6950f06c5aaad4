"""A spec is edited and its data altered while the sweep runs: what was planned is trained, or nothing is."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.engine import run_sweep
from flopsfit_ds.engine.progress import Silence
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.spec import load_spec
from flopsfit_ds.study.steps import _token_task
from helpers.engine.toy import PROGRAM, ToyTask, steps_trained_twice, undisturbed_loss
from helpers.sweeps import MACHINE, MICRO, with_values


class Editor(Silence):
    """Does something whenever a run has its record."""

    def __init__(self, *edits):
        self.edits = list(edits)

    def on_end(self, record):
        if self.edits:
            self.edits.pop(0)()


def train(plan, progress=None):
    """With toys for training; their tasks read the data as those of real training do."""

    def task_of(run):
        _token_task(plan, run)
        return ToyTask(run)

    return run_sweep(plan, tasks=task_of, program=PROGRAM, slots=1, progress=progress)


def test_a_spec_that_is_edited_and_data_that_are_altered_while_a_sweep_runs(tmp_path, faults):
    from flopsfit_ds.study.steps import build_plan

    faults.inject("spec or data changed while running", times=2)
    ids, place = tmp_path / "ids.bin", tmp_path / "spec.yaml"
    (np.arange(50_000) % 251).astype("<u2").tofile(ids)
    whole = ids.read_bytes()
    values = with_values(MICRO, data={"source": "tokens", "path": "ids.bin", "heldout_tokens": 1024})
    values["design"]["points"] = [{"num_params": 6e3, "num_tokens": tokens} for tokens in (12800, 14080, 15360)]
    text = yaml.safe_dump({**values, "output_root": str(tmp_path / "out")})
    place.write_text(text)
    plan = build_plan(load_spec(place), spec_folder=tmp_path, machine=MACHINE)
    edits = Editor(lambda: place.write_text("name: [another"), lambda: ids.write_bytes(whole[:40_000] + whole[40_002:]))
    with pytest.raises(DataError, match=r"ids\.bin changed since this sweep began: it has 99998 bytes and had 100000"):
        train(plan, edits)
    folder = SweepFolder(plan.folder)
    kept = list(folder.records())
    assert [record.loss for record in kept] == [undisturbed_loss()] * 2, "the second was trained as it was planned"
    assert load_spec(folder.spec) == plan.spec
    ids.write_bytes(whole)
    place.write_text(text)
    records = train(build_plan(load_spec(place), spec_folder=tmp_path, machine=MACHINE))
    assert [record.loss for record in records] == [undisturbed_loss()] * 3
    assert [record for record in records if record in kept] == kept, "what was trained before is kept"
    cost = steps_trained_twice(plan.folder)
    faults.cost("spec or data changed while running", cost, allowed=0)

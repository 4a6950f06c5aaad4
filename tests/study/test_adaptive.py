"""A sweep that chooses its own runs: it ends when it is sure enough or the money is spent, and a kill loses nothing."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import yaml

from flopsfit_ds.base.errors import LaunchError, SpecError
from flopsfit_ds.base.storage import write_json
from flopsfit_ds.plan.recorded.chosen import FILE, Choices, ChosenBatch, ChosenRun, first_batch, read_choices
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.study.adaptive import carry_on, refuse_executor
from flopsfit_ds.study.steps import build_plan
from helpers.cli_in_process import invoke
from helpers.run_records import OBSERVED, RECORD
from helpers.sweeps import MACHINE, MICRO, spec_of, with_values, write_bytes_corpus

SPEED = 1e9
"""FLOP/s of a slot, as the planted runs have it."""
ADAPTIVE = with_values(
    MICRO,
    name="adaptive",
    data__heldout_tokens=1024,
    design={
        "method": "adaptive",
        "compute_budgets": [1e11, 4e11],
        "sizes_per_budget": 5,
        "size_span": 8,
        "tokens_per_parameter": 100,
        "gpu_hours": 5,
        "batches": 2,
        "runs_per_batch": 3,
    },
    fit__target_compute=1e14,
)


class Study:
    """A sweep whose runs have the losses of a law, and the folder in which it would train."""

    def __init__(self, folder, values=ADAPTIVE, unlike=lambda run: {}):
        self.spec = spec_of(with_values(values, output_root=str(folder / "outputs")))
        self.base, self.unlike, self.trained, self.said = folder, unlike, [], []
        (folder / "corpus.txt").write_bytes(b"any text will do: nothing here is trained. " * 500_000)

    def plan(self, choices=None):
        return build_plan(self.spec, spec_folder=self.base, machine=MACHINE, choices=choices)

    def train(self, plan, stop_after=None):
        folder = SweepFolder(plan.folder)
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_json(folder.plan, plan.to_json_dict())
        new = [run for run in plan.runs if folder.run(run.run_id).read_record() is None]
        for run in new[:stop_after]:
            folder.run(run.run_id).path.mkdir(parents=True)
            folder.run(run.run_id).write_record(self.record(run))
        self.trained.append([run.run_id for run in new[:stop_after]])
        if stop_after is not None:
            raise KeyboardInterrupt
        return tuple(record for run in plan.runs if (record := folder.run(run.run_id).read_record()))

    def record(self, run):
        n, d = run.num_params_total, run.num_tokens
        loss = (1.2 + 20 / n**0.3 + 40 / d**0.32) * math.exp(0.002 * random.Random(run.run_id).gauss(0, 1))
        planned = dataclasses.replace(
            RECORD.planned, num_params_total=n, num_params_non_embedding=run.num_params_non_embedding, flops=run.flops,
            num_params_trainable=n, num_tokens=d,
        )  # fmt: skip
        observed = dataclasses.replace(
            OBSERVED, num_params_total=n, num_params_trainable=n, num_tokens=d, flops=run.flops, world_size=1,
            seconds=run.flops / SPEED,
        )  # fmt: skip
        made = dataclasses.replace(
            RECORD, run_id=run.run_id, label=run.label, loss=loss, loss_standard_error=None, planned=planned,
            observed=observed, compute_budget_flops=run.compute_budget_flops, unique_tokens=None,
            learning_rate=run.recipe.learning_rate,
        )  # fmt: skip
        return dataclasses.replace(made, **self.unlike(run))

    def carry_on(self, train=None):
        return carry_on(self.plan(), self.plan, train or self.train, self.said.append)

    @property
    def choices(self):
        return read_choices(self.plan().folder, self.spec)[0]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("ended"))
    return study, *study.carry_on()


def test_batches_are_trained_one_after_the_other_within_the_money(ended):
    study, plan, records = ended
    assert len(study.trained) == 1 + len(study.choices.batches)
    assert len(study.trained) >= 2
    assert len(study.trained[0]) == 10
    for ids, batch in zip(study.trained[1:], study.choices.batches, strict=True):
        tuning = sum(run.purpose == "tuning" for run in batch.runs)
        assert len(ids) == len(batch.runs) + tuning <= 6
    all_ids = {run_id for ids in study.trained for run_id in ids}
    assert {record.run_id for record in records} == {run.run_id for run in plan.runs} == all_ids
    hours = sum(record.observed.seconds for record in records) / 3600
    assert 0.5 * 5 < hours < 5 * 1.05
    assert math.isclose(study.choices.batches[0].flops_per_second, SPEED, rel_tol=1e-3)


def test_a_chosen_batch_makes_the_target_surer(ended):
    study, *_ = ended
    first, *later = study.choices.batches
    assert first.num_params_error_after < first.num_params_error
    for batch in later:
        assert batch.num_params_error < first.num_params_error
        assert batch.loss_error < first.loss_error


def test_no_run_is_longer_than_the_distinct_tokens(ended):
    _, plan, _ = ended
    assert max(run.num_tokens for run in plan.runs) <= plan.runs[0].unique_tokens


def test_what_was_chosen_and_why_it_ended_stand_in_the_plan_and_it_is_not_chosen_again(ended):
    study, plan, records = ended
    told = "\n".join(plan.warnings)
    assert "batch 1: " in told
    assert "ended: " in told
    before = len(study.trained)
    again, same = study.carry_on()
    assert [run.run_id for run in again.runs] == [run.run_id for run in plan.runs]
    assert same == records
    assert study.trained[before:] == [[]]


def test_a_sweep_that_was_killed_trains_what_one_without_a_kill_does(tmp_path, ended):
    _, plan, _ = ended
    study, left = Study(tmp_path), 11

    def train(planned):
        nonlocal left
        stop_after, left = left, left - len(planned.runs)
        return study.train(planned, stop_after if 0 < stop_after < len(planned.runs) else None)

    with pytest.raises(KeyboardInterrupt):
        study.carry_on(train)
    again, _ = study.carry_on()
    assert {run.run_id for run in again.runs} == {run.run_id for run in plan.runs}


def test_it_stops_once_the_target_is_as_sure_as_asked(tmp_path):
    study = Study(tmp_path, with_values(ADAPTIVE, design__num_params_error=5.0, design__loss_error=5.0))
    plan, records = study.carry_on()
    assert len(records) == len(plan.runs) == 10
    assert "as asked" in plan.warnings[-1]
    one = Study(
        tmp_path, with_values(ADAPTIVE, design__num_params_error=5.0, design__loss_error=1e-9, design__batches=1)
    )
    more, _ = one.carry_on()
    assert len(more.runs) > 10


def test_it_stops_when_the_money_is_spent(tmp_path):
    plan, records = Study(tmp_path, with_values(ADAPTIVE, design__gpu_hours=0.1)).carry_on()
    assert len(records) == len(plan.runs) == 10
    assert "the money is spent" in plan.warnings[-1]


def test_a_run_that_failed_ends_it_and_nothing_is_chosen_on_what_is_left(tmp_path):
    failed = Study(
        tmp_path, unlike=lambda run: {"status": "failed", "loss": None} if run.num_params_total < 4e3 else {}
    )
    plan, records = failed.carry_on()
    assert any(record.status == "failed" for record in records)
    assert len(plan.runs) == 10
    assert not (plan.folder / FILE).exists()


def test_other_rates_are_tried_at_a_run_and_are_runs_of_their_own(tmp_path):
    study = Study(tmp_path)
    base = study.plan().runs[3]
    run = ChosenRun("tuning", base.num_params_total, base.flops, base.num_tokens, (5e-3, 2e-2))
    batch = ChosenBatch((run,), 0, 0, SPEED, 1, 1, 1, 1)
    plan = study.plan(Choices(first_batch(study.spec), (batch,)))
    assert [each.run_id for each in plan.runs[:10]] == [each.run_id for each in study.plan().runs]
    tried = plan.runs[10:]
    assert [each.recipe.learning_rate for each in tried] == [5e-3, 2e-2]
    assert {(each.num_params_total, each.num_tokens, each.global_batch_sequences) for each in tried} == {
        (base.num_params_total, base.num_tokens, base.global_batch_sequences)
    }
    assert len({each.label for each in plan.runs}) == 12


def test_batches_of_another_first_batch_do_not_count_and_that_is_said(ended):
    study, *_ = ended
    changed = spec_of(with_values(study.spec.model_dump(mode="json"), training__learning_rates=[2e-2]))
    plan = build_plan(changed, spec_folder=study.base, machine=MACHINE)
    assert len(plan.runs) == 10
    assert "chosen anew" in plan.warnings[0]
    kept = spec_of(with_values(study.spec.model_dump(mode="json"), training__checkpoint_every=60, design__gpu_hours=9))
    assert len(build_plan(kept, spec_folder=study.base, machine=MACHINE).runs) > 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"design__compute_budgets": [1e11]}, "carries no law to choose by"),
        ({"design__sizes_per_budget": 2}, "6 or more runs"),
        ({"training__one_trunk": True, "training__schedule": "wsd"}, "one_trunk"),
        ({"design__gpu_hours": None}, "gpu_hours"),
    ],
)
def test_what_cannot_be_is_refused_while_planning(changes, words):
    with pytest.raises(SpecError, match=words):
        spec_of(with_values(ADAPTIVE, **changes))


@pytest.mark.parametrize(
    ("executor", "launched"), [("slurm", False), ("ray", False), ("launched", True), ("auto", True)]
)
def test_executors_that_do_not_carry_it_out_are_refused(executor, launched):
    with pytest.raises(LaunchError, match="one machine"):
        refuse_executor(executor, launched)


@pytest.mark.slow
def test_the_command_trains_chooses_and_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bytes_corpus(tmp_path / "corpus.txt")
    design = {**ADAPTIVE["design"], "compute_budgets": [3e9, 6e9], "sizes_per_budget": 3, "tokens_per_parameter": 20}
    values = with_values(ADAPTIVE, design=design, design__batches=1, design__runs_per_batch=1, fit__target_compute=1e11)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))
    code, output = invoke("sweep", "spec.yaml")
    assert code == 0, output
    assert "nothing more is chosen" in output
    first = len(list(SweepFolder(tmp_path / "outputs" / "adaptive").records()))
    assert first in (7, 8)
    code, output = invoke("sweep", "spec.yaml")
    assert code == 0
    assert "nothing is trained" in output
    code, output = invoke("sweep", "spec.yaml", "--executor", "slurm")
    assert code == 2
    assert "choose with `next`" in output

"""A short sweep sets the multiplier of a rule: what its records say, and the whole way through the command line."""

from __future__ import annotations

import dataclasses
import math

import pytest
import yaml

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.study.steps import build_plan, tuning_plan
from flopsfit_ds.study.tuning import read_tuning
from helpers.cli_in_process import invoke
from helpers.run_records import RECORD
from helpers.sweeps import MACHINE, MICRO, spec_of, with_values, write_bytes_corpus

RULE = {
    "rule": "custom",
    "reference": {"learning_rate": 1e-2, "num_params": 6e3},
    "params_exponent": -0.5,
    "tune": {"num_params": [6e3, 2e4], "tokens_per_parameter": 0.5, "multipliers": [0.02, 0.3, 1, 3, 100]},
}
TUNED = with_values(MICRO, training__learning_rates=None, training__learning_rate=RULE)


@pytest.fixture
def tuning(corpus_folder):
    plan = tuning_plan(spec_of(TUNED), spec_folder=corpus_folder, machine=MACHINE)
    assert plan is not None
    return plan


def outcomes(plan, loss_of):
    """Records of a tuning whose losses are a function of size and multiplier; None for a run that diverged."""
    found = []
    for run in plan.runs:
        multiplier = run.recipe.learning_rate / (1e-2 * (run.num_params_total / 6e3) ** -0.5)
        loss = loss_of(run.num_params_total, multiplier)
        status = "diverged" if loss is None else "completed"
        found.append(dataclasses.replace(RECORD, run_id=run.run_id, loss=loss, status=status))
    return found


def valley(best):
    return lambda size, multiplier: 2 + 0.1 * math.log(multiplier / best(size)) ** 2


def test_a_tuning_is_planned_as_points_at_each_multiplier_of_each_size(tuning):
    assert len({run.run_id for run in tuning.runs}) == len({run.label for run in tuning.runs}) == 10
    assert tuning.name == "micro-tune"
    for run in tuning.runs:
        assert run.num_tokens == pytest.approx(0.5 * run.num_params_total, rel=0.2)


def test_the_best_multiplier_lies_between_those_tried(tuning):
    found = read_tuning(tuning, outcomes(tuning, valley(lambda size: 0.77)))
    assert found is not None
    assert found.multiplier == pytest.approx(0.77, rel=0.01)
    assert found.warning() is None


def test_sizes_that_want_different_multipliers_give_their_mean_and_are_named(tuning):
    small = tuning.runs[0].num_params_total
    found = read_tuning(tuning, outcomes(tuning, valley(lambda size: 0.5 if size == small else 2.0)))
    assert found is not None
    assert found.multiplier == pytest.approx(1.0, rel=0.01)
    assert "changes 4 times from one size to the next" in (found.warning() or "")


def test_a_run_that_diverged_is_no_better_than_its_neighbour(tuning):
    losses = outcomes(tuning, lambda size, m: None if m > 2 else 2 - 0.1 * math.log(m))
    found = read_tuning(tuning, losses)
    assert found is not None
    assert found.multiplier == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("loss_of", "words"),
    [
        (lambda size, m: 2 + math.log(m) * 0.1, "the smallest multiplier tried, 0.02, is the best; add smaller ones"),
        (lambda size, m: 2 - math.log(m) * 0.1, "the largest multiplier tried, 100, is the best; add larger ones"),
        (lambda size, m: None, "no run of .* completed"),
    ],
)
def test_a_best_at_the_edge_is_no_best(tuning, loss_of, words):
    with pytest.raises(PlanError, match=words):
        read_tuning(tuning, outcomes(tuning, loss_of))


def test_as_long_as_runs_are_missing_the_plan_says_what_comes_first(tuning, corpus_folder):
    assert read_tuning(tuning, outcomes(tuning, valley(lambda size: 1))[:-1]) is None
    plan = build_plan(spec_of(TUNED), spec_folder=corpus_folder, machine=MACHINE)
    assert "10 runs" in plan.warnings[0]
    assert "come first" in plan.warnings[0]


@pytest.mark.slow
def test_a_sweep_trains_its_tuning_first_and_takes_the_multiplier_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bytes_corpus(tmp_path / "corpus.txt")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(TUNED))
    code, output = invoke("sweep", "spec.yaml")
    assert code == 0, output
    tuned = list(SweepFolder(tmp_path / "outputs" / "micro-tune").records())
    assert len(tuned) == 10
    (run,) = SweepFolder(tmp_path / "outputs" / "micro").records()
    plan = build_plan(spec_of(TUNED), spec_folder=tmp_path, machine=MACHINE)
    assert "the tuning set the multiplier to" in plan.warnings[0]
    assert run.run_id == plan.runs[0].run_id
    rule = plan.spec.training.learning_rate
    assert rule is not None
    assert rule.tune is None
    assert 0.02 < rule.multiplier < 100
    assert run.learning_rate == pytest.approx(rule.multiplier * 1e-2 * (run.planned.num_params_total / 6e3) ** -0.5)
    code, output = invoke("sweep", "spec.yaml")
    assert code == 0
    assert "nothing is trained" in output

"""The worked examples do what their pages say."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flopsfit_ds import build_plan, fit_scaling_law, load_spec
from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit import points_from_records
from flopsfit_ds.records import SweepFolder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_a_family_of_fixed_depth_meets_the_budgets_in_width_only():
    runs = example("fixed_depth_family")["plan"]().runs
    assert {run.model.num_layers for run in runs} == {4}
    assert len({run.model.hidden_size for run in runs}) == 6
    assert all(run.flops == pytest.approx(run.compute_budget_flops, rel=0.005) for run in runs)


def test_a_law_of_llama_by_a_spec_keeps_groups_of_three_heads_at_all_sizes():
    path = EXAMPLES / "hf_llama.yaml"
    runs = build_plan(load_spec(path), spec_folder=path.parent).runs
    assert len(runs) == 12
    fields = [json.loads(run.model.fields) for run in runs]
    assert all(each["num_attention_heads"] == 3 * each["num_key_value_heads"] for each in fields)
    assert all(each["hidden_size"] == 4 * each["num_attention_heads"] for each in fields)
    assert all(run.flops == pytest.approx(run.compute_budget_flops, rel=0.005) for run in runs)


def test_a_law_with_a_known_floor_gets_the_planted_exponents_back():
    law = example("own_law")["fit_planted"]().law
    assert law.loss_floor == 1.7
    assert (law.alpha, law.beta) == (pytest.approx(0.34, abs=0.01), pytest.approx(0.28, abs=0.01))


def test_a_file_of_own_ids_is_planned_on_as_it_was_written(tmp_path: Path):
    module = example("own_tokens")
    assert module["write_tokens"](tmp_path / "two.bin", ["ACGT", "TTA"]) == 7
    assert np.fromfile(tmp_path / "two.bin", "<u2").tolist() == [0, 1, 2, 3, 3, 3, 0]
    spec = module["write_study"](tmp_path)
    plan = build_plan(load_spec(spec), spec_folder=tmp_path)
    assert plan.corpus.num_tokens == 200_000
    assert {run.unique_tokens for run in plan.runs} == {200_000 - 8192}


@pytest.mark.slow
def test_training_on_own_ids_comes_near_what_they_tell(tmp_path: Path):
    """Of its 0.837 nats a base, and far from the 1.386 of noise."""
    spec = example("own_tokens")["write_study"](tmp_path)
    program = Path(sys.executable).with_name("flopsfit-ds")
    subprocess.run([program, "sweep", spec.name], cwd=tmp_path, check=True, capture_output=True)
    losses = [record.loss for record in SweepFolder(tmp_path / "outputs" / "genes").records()]
    assert len(losses) == 2
    assert all(0.8 < loss < 1.1 for loss in losses), losses


def test_an_executor_of_threads_carries_a_sweep_to_a_law_and_tries_again_what_failed(tmp_path: Path):
    module, begun = example("thread_executor"), []

    def train(run):
        begun.append(run.run_id)
        if begun.count(run.run_id) == 1 and run.run_id == begun[0]:
            raise ConnectionError("the data went away")
        return module["pretend"](run)

    plan = module["plan"](tmp_path / "threads")
    records = module["sweep"](plan, train)
    assert [record.status for record in records] == ["completed"] * 15
    (retried,) = (record for record in records if len(record.attempts) > 1)
    assert [attempt.outcome for attempt in retried.attempts] == ["failed", "completed"]
    assert retried.attempts[0].reason == "ConnectionError: the data went away"
    assert module["sweep"](plan, train) == records
    assert len(begun) == 16, "nothing is trained twice"
    law = fit_scaling_law(points_from_records(records).points, bootstrap_samples=0).law
    assert (law.loss_floor, law.alpha, law.beta) == pytest.approx((1.8, 0.35, 0.37), rel=1e-3)


def test_a_run_that_diverges_in_a_thread_is_recorded_so(tmp_path: Path):
    module = example("thread_executor")
    records = module["sweep"](module["plan"](tmp_path / "threads"), lambda run: float("nan"))
    assert {record.status for record in records} == {"diverged"}
    table = points_from_records(records)
    assert len(table.excluded) == 15
    with pytest.raises(FitError, match="0 distinct points"):
        fit_scaling_law(table.points)


def test_a_vision_transformer_is_planned_on_images_that_are_functions_of_their_number(tmp_path: Path):
    module = example("own_vit")
    images = module["Gratings"](100)
    again = module["Gratings"](100)
    assert all((images[i][0] == again[i][0]).all() and images[i][1] == again[i][1] for i in range(100))
    assert len({int(images[i][1]) for i in range(100)}) > 20
    runs = module["study"](train=False, progress=False, output_root=str(tmp_path)).runs
    assert len(runs) == 12
    assert all(run.flops == pytest.approx(run.compute_budget_flops, rel=0.005) for run in runs)
    assert {run.flops_source for run in runs} == {"counted"}


@pytest.mark.slow
@pytest.mark.long
def test_a_vision_transformer_has_its_best_size_within_those_tried(tmp_path: Path):
    subprocess.run([sys.executable, EXAMPLES / "own_vit.py"], cwd=tmp_path, check=True, capture_output=True)
    by_budget: dict[float | None, dict[int, float]] = {}
    for record in SweepFolder(tmp_path / "outputs" / "own-vit").records():
        assert record.loss is not None
        by_budget.setdefault(record.compute_budget_flops, {})[record.planned.num_params_total] = record.loss
    assert len(by_budget) == 3
    for losses in by_budget.values():
        best = min(losses, key=losses.__getitem__)
        assert min(losses) < best < max(losses), losses


def test_the_rate_follows_the_size_by_its_rule():
    rates = example("recipe_rule")["rates"]()
    assert len(rates) == 3
    for num_params, rate in rates.items():
        assert rate == pytest.approx(4e-3 * (num_params / 200_000) ** -0.25)


def test_a_rule_of_two_variables_gives_each_point_its_rate_and_its_id():
    module = example("recipe_rule")
    points = [(2e5, 1e6), (8e5, 4e6), (8e5, 16e6)]
    runs = module["plan_by_rule"](points, module["step_law"]).runs
    rates = [1.79 * run.num_params_non_embedding**-0.713 * run.num_tokens**0.307 for run in runs]
    assert [run.recipe.learning_rate for run in runs] == pytest.approx(rates)
    again, other = (module["plan_by_rule"](points, rule).runs for rule in (module["step_law"], lambda n, d: 1e-3))
    assert [run.run_id for run in runs] == [run.run_id for run in again]
    assert not {run.run_id for run in runs} & {run.run_id for run in other}


def test_muon_and_adamw_are_trained_on_the_same_points():
    module = example("muon_against_adamw")
    plans = [module["plan_of"](name) for name in ("adamw", "muon")]
    points = [[(run.num_params_total, run.num_tokens, run.recipe.learning_rate) for run in plan.runs] for plan in plans]
    assert points[0] == points[1]
    assert not {run.run_id for run in plans[0].runs} & {run.run_id for run in plans[1].runs}
    assert {run.placement.strategy.zero_stage for plan in plans for run in plan.runs} == {0}

"""The next runs: they fit the slots and the money, they are where the runs so far say least, and they tell more."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from flopsfit_ds.base.errors import FitError, PlanError
from flopsfit_ds.decide.choosing.choose import NextRuns, choose_next
from flopsfit_ds.decide.choosing.sizes import sizes_to_be_had
from flopsfit_ds.fit import Point, fit_scaling_law
from flopsfit_ds.fit.planted import PlantedLaw, random_law
from flopsfit_ds.plan.family import decoder_family
from helpers.cli_in_process import invoke, run_json
from helpers.fit.planted_sweeps import write_csv
from helpers.sweeps import MICRO, plan_of, with_values

SPEED = 4e14
TARGET = 1e22


def law_and_runs(
    seed: int, budgets: tuple[float, ...] = (1e18, 4e18, 1.6e19), half: float = 1.4, noise: float = 0.003
) -> tuple[PlantedLaw, list[Point]]:
    rng = np.random.default_rng(seed)
    planted = random_law("chinchilla", rng)
    points = []
    for budget in budgets:
        for offset in np.linspace(-half, half, 5):
            n = planted.optimal_size(budget) * math.exp(offset)
            points.append(train(planted, n, budget / 6 / n, noise, rng))
    return planted, points


def train(planted: PlantedLaw, n: float, d: float, noise: float, rng: np.random.Generator) -> Point:
    loss = float(planted.loss(np.array([n]), np.array([d]))[0])
    return Point(n, d, loss * math.exp(noise * rng.standard_normal()))


@pytest.fixture(scope="module")
def batch() -> NextRuns:
    return choose_next(law_and_runs(1)[1], 40 * 3600.0, SPEED, target_compute=TARGET, gpus=8)


def test_a_batch_fits_the_money_the_time_and_the_gpus(batch):
    assert len(batch.runs) >= 5
    assert batch.gpu_seconds <= 40 * 3600
    assert batch.wall_seconds <= 40 * 3600 / 8 * (1 + 1e-6)
    moments = [run.start_seconds for run in batch.runs]
    for moment in moments:
        busy = [r.gpus for r in batch.runs if r.start_seconds <= moment < r.start_seconds + r.gpu_seconds / r.gpus]
        assert sum(busy) <= 8
    for run in batch.runs:
        tries = 2 if run.purpose == "tuning" else 1
        assert run.gpu_seconds == pytest.approx(tries * run.compute / SPEED, rel=1e-6)
        assert run.compute == pytest.approx(6 * run.num_params * run.num_tokens, rel=1e-3)


def test_every_run_of_a_batch_lowers_the_errors_and_the_whole_much(batch):
    errors = [batch.before, *(run.after for run in batch.runs)]
    for earlier, later in itertools.pairwise(errors):
        assert later.log_num_params <= earlier.log_num_params
        assert later.log_loss <= earlier.log_loss
    assert batch.after.log_num_params < 0.8 * batch.before.log_num_params
    assert batch.after.log_loss < 0.8 * batch.before.log_loss


def test_a_fit_that_is_there_is_not_made_again_and_chooses_the_same(batch, monkeypatch):
    points = law_and_runs(1)[1]
    model = fit_scaling_law(points, bootstrap_samples=0, diagnostics=False).prediction
    monkeypatch.setattr("flopsfit_ds.decide.choosing.choose.fit_scaling_law", None)
    assert choose_next(points, 40 * 3600.0, SPEED, target_compute=TARGET, gpus=8, model=model) == batch


def test_more_money_tells_more(batch):
    points = law_and_runs(1)[1]
    rich = choose_next(points, 400 * 3600.0, SPEED, target_compute=TARGET, gpus=8)
    assert rich.after.log_loss < batch.after.log_loss
    assert max(run.compute for run in rich.runs) > max(run.compute for run in batch.runs)


def test_a_narrow_grid_gets_runs_outside_of_it():
    _, points = law_and_runs(2, half=0.15)
    ratios = [p.num_tokens / p.num_params for p in points]
    found = choose_next(points, 40 * 3600.0, SPEED, target_compute=TARGET)
    first = [run.num_tokens / run.num_params for run in found.runs if run.purpose == "law"][:3]
    assert any(ratio < 0.7 * min(ratios) or ratio > 1.4 * max(ratios) for ratio in first)


def test_tuning_runs_compete_and_are_not_asked_for_where_rates_were_tried():
    _, points = law_and_runs(3)
    tried = [replace(p, learning_rate=1e-3) for p in points]
    more = [replace(p, learning_rate=rate, loss=p.loss * 1.02) for p in tried for rate in (5e-4, 2e-3)]

    def tuning(runs: list[Point]) -> int:
        found = choose_next(runs, 40 * 3600.0, SPEED, target_compute=TARGET)
        return sum(run.purpose == "tuning" for run in found.runs)

    assert tuning(points) > tuning([*tried, *more])


@pytest.mark.slow
def test_chosen_runs_find_the_optimum_better_than_random_ones_of_the_same_cost():
    chosen_errors, random_errors = [], []
    for seed in range(4):
        planted, points = law_and_runs(10 + seed)
        rng = np.random.default_rng(seed)
        truth = math.log(planted.optimal_size(TARGET))
        found = choose_next(points, 20 * 3600.0, SPEED, target_compute=TARGET)
        runs = [train(planted, r.num_params, r.num_tokens, 0.003, rng) for r in found.runs if r.purpose == "law"]
        chosen_errors.append(abs(math.log(size_at_target([*points, *runs])) - truth))
        budget, drawn = sum(6 * p.num_params * p.num_tokens for p in runs), []
        while budget > 1e18:
            compute = min(budget, math.exp(rng.uniform(math.log(1e18), math.log(3e19))))
            n = planted.optimal_size(compute) * math.exp(rng.uniform(-1.4, 1.4))
            drawn.append(train(planted, n, compute / 6 / n, 0.003, rng))
            budget -= compute
        random_errors.append(abs(math.log(size_at_target([*points, *drawn])) - truth))
    assert np.mean(chosen_errors) < np.mean(random_errors)


def size_at_target(points: list[Point]) -> float:
    fit = fit_scaling_law(points, bootstrap_samples=0, other_forms=False, diagnostics=False)
    return fit.optimum(TARGET).num_params


def test_no_money_no_run():
    with pytest.raises(FitError, match="no run fits into"):
        choose_next(law_and_runs(1)[1], 1.0, SPEED)


@pytest.mark.parametrize("options", [{"gpu_seconds": -1.0}, {"flops_per_second": math.nan}, {"gpus": 0}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(FitError, match="positive"):
        choose_next(law_and_runs(1)[1], **{"gpu_seconds": 1e5, "flops_per_second": SPEED, **options})


def test_the_command_prints_a_table_and_json_and_asks_for_what_it_does_not_know(tmp_path):
    path = write_csv(tmp_path / "runs.csv", law_and_runs(1)[1])
    arguments = ("next", path, "--gpu-hours", "40", "--target", "1e22", "--gpus", "4")
    code, output = invoke(*arguments)
    assert code == 2
    assert "--flops-per-second" in output
    assert output.count("\n") == 1
    found = run_json(*arguments, "--flops-per-second", "4e14", "--json")
    code, output = invoke(*arguments, "--flops-per-second", "4e14")
    assert code == 0
    assert f"{len(found['runs'])} runs of {found['num_candidates']} candidates" in output
    assert 900 <= found["num_candidates"] <= 1100


def test_sizes_are_those_that_the_models_of_a_sweep_can_have(corpus_folder):
    """Without them, runs of a tenth of the smallest shape of a family of bytes were proposed."""
    plan = plan_of(
        with_values(MICRO, design={"method": "ladder", "num_params": ["12k"], "tokens_per_parameter": [20]}),
        corpus_folder,
    )
    sizes = sizes_to_be_had(plan)
    family = decoder_family(plan.spec, None)
    assert [family.nearest(size, ()).num_params for size in sizes] == list(sizes)
    smallest = sizes[0]
    with pytest.raises(PlanError):
        family.nearest(smallest / 2.1, ())
    large = law_and_runs(1)[1]
    scale = 1.5 * smallest / np.median([point.num_params for point in large])
    points = [Point(scale * each.num_params, scale * each.num_tokens, each.loss) for each in large]
    options = (40 * 3600.0, SPEED * scale**2)
    free = choose_next(points, *options, target_compute=TARGET * scale**2)
    assert min(run.num_params for run in free.runs) < smallest
    found = choose_next(points, *options, target_compute=TARGET * scale**2, sizes=sizes)
    chosen = [run.num_params for run in found.runs if run.purpose == "law"]
    assert chosen
    assert all(min(abs(math.log(size / each)) for each in sizes) < 1e-9 for size in chosen)

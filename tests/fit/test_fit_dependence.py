"""Points that are not independent are found by columns or names and resampled together; errors of loss are weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.fit import Point, fit_scaling_law, load_points
from flopsfit_ds.fit.points.dependence import dependence_of
from flopsfit_ds.fit.points.selection import select_points
from helpers.fit.planted_sweeps import sweep

SIZES = np.geomspace(3e7, 1e9, 8).tolist()


def checkpoints(shared: float = 0.004, noise: float = 0.0003, seed: int = 0, **how: str) -> list[Point]:
    """Six checkpoints of each of eight runs; what went right or wrong in a run is shared by all of its checkpoints."""
    rng = np.random.default_rng(seed)
    points = []
    for number, n in enumerate(SIZES):
        luck = shared * rng.standard_normal()
        for ratio in (5, 10, 20, 40, 80, 160):
            loss = 1.7 + 400 / n**0.34 + 410 / (ratio * n) ** 0.28
            loss *= math.exp(luck + noise * rng.standard_normal())
            points.append(Point(n, ratio * n, loss, run_id=f"run-{number}", **how))
    return points


def quick(points: list[Point], **options):
    return fit_scaling_law(
        points, loss="squared_log", bootstrap_samples=100, other_forms=False, diagnostics=False, **options
    )


def test_checkpoints_are_resampled_by_run_and_intervals_widen() -> None:
    points = checkpoints()
    together, alone = quick(points), quick([replace(p, run_id=None) for p in points])
    assert together.audit.bootstrap == "clusters"
    assert alone.audit.bootstrap == "points"
    assert 1.3 < together.standard_errors["alpha"] / alone.standard_errors["alpha"] < 6
    told = {w.code: w.message for w in together.warnings}["dependent_points"]
    assert "48 are checkpoints of one run (8 such groups)" in told
    assert "8 independent groups" in told
    assert "column schedule" in told
    assert "dependent_points" not in {w.code for w in alone.warnings}


@pytest.mark.parametrize("name", ["pilot-{k}-step{s}", "pilot_{k}_ckpt_{s}", "pilot {k}/iter={s}k", "pilot.{k}@{s}"])
def test_checkpoints_are_found_by_names_that_differ_in_a_step(name: str) -> None:
    points = [
        replace(p, run_id=None, label=name.format(k=i // 6, s=100 * (1 + i % 6))) for i, p in enumerate(checkpoints())
    ]
    found = dependence_of(points)
    assert found.num_groups == (48 if "@" in name else 8)


def test_names_of_sizes_are_no_runs() -> None:
    points = [replace(p, run_id=None, label=f"{p.num_params / 1e6:.0f}M") for p in checkpoints()]
    assert dependence_of(points).found == ()


def test_a_column_of_runs_says_which_rows_are_checkpoints_of_one(tmp_path: Path) -> None:
    rows = [f"{p.run_id},{p.num_params:.0f},{p.num_tokens:.0f},{p.loss}" for p in checkpoints()]
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(["run,params,tokens,val_loss", *rows]))
    loaded = load_points(table)
    assert dependence_of(loaded.points).found == ("48 are checkpoints of one run (8 such groups)",)


def test_checkpoints_under_cosine_decay_are_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = [f"{p.num_params!r},{p.num_tokens!r},{p.loss!r},{p.run_id},Cosine" for p in checkpoints()]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["N,D,loss,run_id,lr_schedule", *rows]) + "\n")
    chosen = select_points(load_points(path).points)
    assert [p.num_tokens / p.num_params for p in chosen.points] == pytest.approx([160.0] * 8)
    assert len(chosen.excluded) == 40
    assert "under Cosine decay: its learning rate had not decayed" in chosen.excluded[0].reason
    kept = select_points(checkpoints(schedule="wsd"))
    assert len(kept.points) == 48


def test_branches_of_a_trunk_and_seeds_belong_together() -> None:
    _, points = sweep()
    branches = [replace(p, run_id=f"b{k}", trunk=f"trunk {k // 5}") for k, p in enumerate(points)]
    assert dependence_of(branches).num_groups == 8
    trunk = replace(points[0], run_id="trunk 3", num_tokens=3.0 * points[0].num_tokens)
    assert dependence_of([*branches, trunk]).num_groups == 8
    seeds = [replace(p, seed=s) for p in points for s in (1, 2, 3)]
    found = dependence_of(seeds)
    assert found.num_groups == len(points)
    assert "120 are seeds of one size and tokens (40 such groups)" in found.found[0]


def test_evaluation_errors_are_weights() -> None:
    """Half of the losses were measured ten times worse, and say so."""
    errors_told, errors_untold = [], []
    for seed in range(6):
        planted, points = sweep(seed, noise=0.0005)
        rng = np.random.default_rng(seed)
        rough = [
            replace(
                p,
                loss=p.loss * math.exp((0.01 if k % 2 else 0.0) * rng.standard_normal()),
                loss_standard_error=(0.01 if k % 2 else 0.0003) * p.loss,
            )
            for k, p in enumerate(points)
        ]
        told, untold = (
            fit_scaling_law(r, loss="squared_log", bootstrap_samples=0, other_forms=False, diagnostics=False)
            for r in (rough, [replace(p, loss_standard_error=None) for p in rough])
        )
        assert told.audit.largest_weight is not None
        assert told.audit.largest_weight > 3
        assert untold.audit.largest_weight is None
        truth = planted.natural()["a"]
        errors_told.append(abs(told.law.a - truth))
        errors_untold.append(abs(untold.law.a - truth))
    assert sum(errors_told) < 0.8 * sum(errors_untold)


def test_sizes_whose_seeds_scatter_weigh_less() -> None:
    _, points = sweep(noise=0.0)
    rng = np.random.default_rng(2)
    rows = []
    for p in points:
        wild = p.num_params < 1.5e8
        for seed in (1, 2, 3):
            scatter = (0.02 if wild else 0.001) * rng.standard_normal()
            rows.append(replace(p, seed=seed, loss=p.loss * math.exp(scatter)))
    assert 0 < sum(p.num_params < 1.5e8 for p in rows) < len(rows)
    fit = fit_scaling_law(rows, bootstrap_samples=0, other_forms=False, diagnostics=False)
    assert fit.audit.largest_weight is not None
    assert fit.audit.largest_weight > 3

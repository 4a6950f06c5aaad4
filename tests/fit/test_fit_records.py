"""Records of a sweep as points, and the three ways to resample them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.engine.disk.results import records_csv
from flopsfit_ds.fit import Point, fit_scaling_law, points_from_records
from flopsfit_ds.fit.points.dependence import cluster_labels
from flopsfit_ds.records import Observed, Planned, RunRecord, Status, SweepFolder
from flopsfit_ds.spec.fit_options import COUNT_FIELDS, ParameterCount, count_in_words
from helpers.cli_in_process import invoke, run_json
from helpers.fit.planted_sweeps import sweep


def record(number: int, point: Point, status: Status = "completed", reason: str | None = None) -> RunRecord:
    size, tokens = round(point.num_params), round(point.num_tokens)
    flops = 7.0 * size * tokens
    return RunRecord(
        run_id=f"run{number:03d}",
        label=f"point {number}",
        status=status,
        reason=reason,
        loss=point.loss if status == "completed" else None,
        loss_standard_error=0.01,
        loss_tokens=1000,
        compute_budget_flops=point.compute_budget_flops,
        seed=0,
        learning_rate=1e-3,
        unique_tokens=10 * tokens,
        precision="fp32",
        model={},
        planned=Planned(size, size // 2, size, tokens, flops, 1, 1.0, 0, 1),
        observed=Observed(size, size, tokens, flops, None, None, 1.0, 1.0, None, 0, 1, 0, None, {}),
        attempts=(),
        versions={},
        git_commit=None,
        host="here",
        device="cpu",
        finished_at=0.0,
    )


@pytest.fixture
def records() -> list[RunRecord]:
    _, points = sweep()
    done = [record(k, p) for k, p in enumerate(points)]
    return [*done, record(98, points[0], "diverged", "loss is NaN at step 7"), record(99, points[1], "oom")]


def test_only_completed_runs_enter_and_the_others_are_listed(records: list[RunRecord]) -> None:
    chosen = points_from_records(records)
    assert len(chosen.points) == 40
    assert [(e.name, e.reason) for e in chosen.excluded] == [
        ("point 98", "status diverged: loss is NaN at step 7"),
        ("point 99", "status oom"),
    ]
    fit = fit_scaling_law(chosen.points, excluded=chosen.excluded, bootstrap_samples=0, other_forms=False)
    assert len(fit.excluded) == 2
    assert fit.audit.compute_rule.startswith("C = 7 N D")


def test_a_refuted_form_is_not_the_headline(tmp_path: Path) -> None:
    from flopsfit_ds.report import write_report

    _, points = sweep(form="kaplan")
    done = [record(k, p) for k, p in enumerate(points)]
    fit = fit_scaling_law(points_from_records(done).points, bootstrap_samples=50)
    prediction = fit.predict(fit.optima[-1].compute)
    assert prediction.law_weight < 0.2
    assert prediction.interval.contains(prediction.loss)
    assert prediction.loss != pytest.approx(prediction.law_loss, rel=1e-3)
    page = write_report(tmp_path, done, fit).read_text(encoding="utf-8")
    assert f"predicted {prediction.loss:.3f}" in page


def test_parameters_are_counted_as_asked(records: list[RunRecord]) -> None:
    total, inner = points_from_records(records), points_from_records(records, parameter_count="non-embedding")
    assert [p.num_params // 2 for p in total.points] == [p.num_params for p in inner.points]
    planned = dataclasses.replace(records[0].planned, num_params_active=123)
    known = [dataclasses.replace(records[0], planned=planned), *records[1:]]
    active = points_from_records(known, parameter_count="active")
    assert [p.num_params for p in active.points] == [123]
    assert len(active.excluded) == len(records) - 1
    assert "active parameters are not known" in active.excluded[0].reason


def test_the_sweep_folder_and_its_table_give_the_same_fit(records: list[RunRecord], tmp_path: Path) -> None:
    from helpers.fit.planted_cli import run

    folder = SweepFolder(tmp_path / "sweep")
    folder.prepare()
    for one in records:
        place = folder.run(one.run_id)
        place.path.mkdir(parents=True)
        place.write_record(one)
    folder.results.write_text(records_csv(records))
    options = ["--json", "--bootstrap-samples", "0"]
    first, second = run("fit", str(folder.path), *options), run("fit", str(folder.results), *options)
    assert first["law"] == pytest.approx(second["law"])
    assert len(first["excluded"]) == len(second["excluded"]) == 2


def test_the_three_bootstraps_agree_on_independent_points() -> None:
    _, points = sweep(budgets=(1e18, 3e18, 1e19, 3e19, 1e20, 3e20), sizes_per_budget=12)
    errors = {
        kind: fit_scaling_law(
            points, bootstrap=kind, loss="squared_log", bootstrap_samples=400, other_forms=False, diagnostics=False
        ).standard_errors["alpha"]
        for kind in ("points", "clusters", "wild")
    }
    assert max(errors.values()) < 1.6 * min(errors.values())


def test_clusters_are_runs_where_runs_repeat_and_sizes_otherwise() -> None:
    _, points = sweep()
    runs = [replace(p, run_id=f"run {k // 4}") for k, p in enumerate(points)]
    assert len(set(cluster_labels(runs).tolist())) == 10
    sizes = [replace(p, num_params=float(10 ** (k % 5))) for k, p in enumerate(points)]
    assert len(set(cluster_labels(sizes).tolist())) == 5


def test_clustered_noise_widens_only_the_cluster_bootstrap() -> None:
    _, points = sweep(noise=0.0, sizes_per_budget=10)
    rng = np.random.default_rng(0)
    shift = {p.compute_budget_flops: rng.standard_normal() for p in points}
    runs = [
        replace(
            p, run_id=str(p.compute_budget_flops), loss=p.loss * float(np.exp(0.003 * shift[p.compute_budget_flops]))
        )
        for p in points
    ]
    noisy = [replace(p, loss=p.loss * float(np.exp(1e-4 * rng.standard_normal()))) for p in runs]
    wide, narrow = (
        fit_scaling_law(
            noisy, bootstrap=kind, loss="squared_log", bootstrap_samples=200, other_forms=False, diagnostics=False
        ).standard_errors["loss_floor"]
        for kind in ("clusters", "points")
    )
    assert wide > 1.5 * narrow


COUNTED: list[ParameterCount] = ["total", "non-embedding", "active", "matrices"]


def planted_sweep(folder: Path, count: ParameterCount) -> Path:
    """A folder of runs whose losses follow a law of one count, and whose other counts are no multiple of it."""
    fields: dict[ParameterCount, Callable[[float], float]] = {
        "total": lambda n: n + 4e4 * n**0.35, "non-embedding": lambda n: n, "active": lambda n: 0.4 * n + 900 * n**0.4,
        "matrices": lambda n: 0.9 * n + 3e4 * n**0.3,
    }  # fmt: skip
    kept = SweepFolder(folder)
    for number, point in enumerate(exact_points()):
        sizes = {COUNT_FIELDS[each]: round(grow(point.num_params)) for each, grow in fields.items()}
        loss = 1.7 + 400 / sizes[COUNT_FIELDS[count]] ** 0.34 + 410 / point.num_tokens**0.28
        found = record(number, replace(point, loss=loss))
        found = replace(found, planned=replace(found.planned, **sizes))
        (folder / "runs" / found.run_id).mkdir(parents=True)
        kept.run(found.run_id).write_record(found)
    return folder


def exact_points() -> list[Point]:
    sizes = [
        (budget, factor * (budget / 120) ** 0.5) for budget in (1e17, 1e18, 1e19) for factor in (0.3, 0.6, 1, 2, 3)
    ]
    return [Point(n, budget / 6 / n, 1.0, compute_budget_flops=budget) for budget, n in sizes]


@pytest.mark.parametrize("count", COUNTED)
def test_a_law_planted_in_any_count_is_found_by_it_and_what_follows_says_which(
    tmp_path: Path, count: ParameterCount
) -> None:
    folder = planted_sweep(tmp_path / "sweep", count)
    quick = ("--bootstrap-samples", "0", "--json")
    fit = run_json("fit", folder, "--parameters", count, *quick, "-o", tmp_path / "f.json")
    assert fit["audit"]["parameters"] == count
    assert fit["law"]["alpha"] == pytest.approx(0.34, abs=1e-3)
    assert fit["law"]["loss_floor"] == pytest.approx(1.7, abs=1e-3)
    other = COUNTED[COUNTED.index(count) - 1]
    wrong = run_json("fit", folder, "--parameters", other, *quick)
    assert abs(wrong["law"]["alpha"] - 0.34) > 0.01
    assert run_json("predict", tmp_path / "f.json", "--compute", "1e21", "--json")["parameters"] == count
    words = f"N counts {count_in_words(count)}"
    assert all(words in invoke(*told)[1] for told in (
        ("fit", folder, "--parameters", count, "--bootstrap-samples", "0"),
        ("predict", tmp_path / "f.json", "--compute", "1e21"),
    ))  # fmt: skip


def test_sweeps_whose_n_counts_unlike_things_are_not_fitted_as_one(tmp_path: Path) -> None:
    one = planted_sweep(tmp_path / "one", "total")
    assert invoke("fit", one, "--parameters", "active", "--bootstrap-samples", "0", "-o", tmp_path / "a.json")[0] == 0
    code, told = invoke("fit", one, tmp_path / "a.json", "--bootstrap-samples", "0")
    assert code == 2
    assert "N counts all parameters in one, active parameters in" in told

"""The audit passes a grid made with care, and names each thing that is wrong with one that was not."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.decide.audit.checklist import audit_runs
from flopsfit_ds.decide.sources import Source, read_sources
from flopsfit_ds.fit import Point, fit_scaling_law
from helpers.cli_in_process import invoke, run_json
from helpers.fit.planted_sweeps import sweep, write_csv

NOISE = 0.002


def loss(n: float, d: float) -> float:
    return 1.7 + 400 / n**0.34 + 410 / d**0.28


def careful() -> list[Point]:
    """Five budgets of seven sizes, three learning rates at two places, three seeds at one, everything written down."""
    rng = np.random.default_rng(1)
    points: list[Point] = []

    def add(n: float, budget: float, rate: float = 1e-3, seed: int = 0, extra: float = 0.0) -> None:
        d = budget / 6 / n
        value = loss(n, d) * math.exp(extra + NOISE * rng.standard_normal())
        number = len(points)
        points.append(
            Point(n, d, value, None, seed, rate, None, f"run-{number}", 10 * d, budget, 1e-4 * value, number + 1)
        )

    for budget in (1e19, 3e19, 1e20, 3e20, 1e21):
        for offset in np.linspace(-1.4, 1.4, 7):
            n = math.sqrt(budget / 120) * math.exp(offset)
            add(n, budget, 1e-3 * (n / 1e9) ** -0.2)
    for point in (points[3], points[17]):
        for factor, extra in ((0.5, 0.01), (2.0, 0.012)):
            add(point.num_params, point.compute_budget_flops or 0, (point.learning_rate or 1.0) * factor, extra=extra)
    for seed in (1, 2):
        add(points[24].num_params, points[24].compute_budget_flops or 0, points[24].learning_rate or 1.0, seed)
    return [replace(point, global_batch=512) for point in points]


def test_the_most_repeated_source_of_a_mixture_is_judged_and_not_the_mean():
    points = [replace(point, unique_tokens=point.num_tokens / 2) for point in careful()]
    assert audited(points)["data"].status == "passed"
    points[5] = replace(points[5], most_repeats=4.5)
    found = audited(points)["data"]
    assert found.status == "failed"
    assert "4.5 passes over a source of the mixture" in found.found


def audited(points: Sequence[Point], columns: dict[str, str] | None = None, **options):
    source = Source("t", ("table",), tuple(points), (), columns or {}, None, (None,) * len(points))
    report = audit_runs(source, **options)
    return {check.code: check for check in report.checks}


COLUMNS = {"num_params": "total_params"}


def test_a_grid_made_with_care_passes_all_that_a_table_can_tell():
    found = audited(careful(), COLUMNS)
    assert {code for code, check in found.items() if check.status != "passed"} == {"schedule"}
    assert all((check.remedy is None) == (check.status == "passed") for check in found.values())


def only_upper_sizes(points: list[Point]) -> list[Point]:
    return [p for p in points if p.num_params > 1.1 * math.sqrt((p.compute_budget_flops or 0) / 120)]


def on_a_ray(points: list[Point]) -> list[Point]:
    sizes = np.geomspace(1e8, 1e10, 16)
    return [
        replace(points[0], num_params=n, num_tokens=20 * n, loss=loss(n, 20 * n), compute_budget_flops=None)
        for n in sizes
    ]


def with_other(index: int, **changes: object) -> Callable[[list[Point]], list[Point]]:
    return lambda points: [replace(p, **changes) if k == index else p for k, p in enumerate(points)]  # type: ignore[arg-type]


def mistuned(points: list[Point]) -> list[Point]:
    """Tuned at the middle sizes only."""
    return [replace(p, loss=p.loss * math.exp(0.01 * math.log(p.num_params / 1e9) ** 2)) for p in points]


DEFECTS: dict[str, tuple[str, Callable[[list[Point]], list[Point]], str]] = {
    "two budgets": ("compute_range", lambda ps: [p for p in ps if (p.compute_budget_flops or 0) < 4e19], "3 budgets"),
    "three sizes": ("sizes", lambda ps: [p for k, p in enumerate(ps[:35]) if k % 7 in (2, 3, 4)], "5 or more"),
    "one side": ("edges", only_upper_sizes, "smaller sizes"),
    "a ray": ("tokens_per_parameter", on_a_ray, "other numbers of tokens"),
    "a diverged run": ("outliers", with_other(10, loss=4.5), "row 11"),
    "a copied row": ("repeats", lambda ps: [*ps, ps[5]], "remove copies"),
    "checkpoints": (
        "dependence",
        lambda ps: [replace(p, run_id=f"r{k // 3}") for k, p in enumerate(ps)],
        "final losses",
    ),
    "checkpoints by name": (
        "dependence",
        lambda ps: [
            replace(p, run_id=None, label=f"m{k}-step-{step}", num_tokens=p.num_tokens * step / 2)
            for k, p in enumerate(ps)
            for step in (1, 2)
        ],
        "checkpoints of one run",
    ),
    "six epochs": ("data", lambda ps: [replace(p, unique_tokens=p.num_tokens / 6) for p in ps], "data-constrained"),
    "few held-out tokens": (
        "evaluation",
        lambda ps: [replace(p, loss_standard_error=0.02 * p.loss) for p in ps],
        "held-out tokens",
    ),
    "one rate": (
        "tuning",
        lambda ps: [replace(p, learning_rate=1e-3, num_params=p.num_params) for p in ps[:35]],
        "learning rates",
    ),
    "rates at an edge": ("tuning", lambda ps: ps[:36] + ps[37:38] + ps[39:], "widen the range"),
    "embeddings": (
        "embeddings",
        lambda ps: [replace(p, flops=6 * (p.num_params + 2e7 + 60 * p.num_params**0.66) * p.num_tokens) for p in ps],
        "count all",
    ),
    "one batch of another size": ("batches", with_other(8, global_batch=64), "3e19 FLOPs from 64 to 512"),
    "one decimal": ("rounding", lambda ps: [replace(p, loss=round(p.loss, 1)) for p in ps], "multiples of 0.1"),
    "small runs mistuned": ("residuals", mistuned, "mistuned"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_fails_its_check_with_what_to_do(defect):
    code, spoil, words = DEFECTS[defect]
    check = audited(spoil(careful()), COLUMNS)[code]
    assert check.status == "failed", check
    assert words in f"{check.found} {check.remedy}"


def test_what_a_bare_table_cannot_tell_is_said_to_be_unknown():
    bare = [Point(p.num_params, p.num_tokens, p.loss) for p in careful()[:35]]
    found = audited(bare)
    unknown = {code for code, check in found.items() if check.status == "unknown"}
    assert unknown == {"embeddings", "tuning", "batches", "schedule", "repeats", "data", "dependence", "evaluation"}
    assert found["outliers"].status == "passed"


def test_a_target_far_beyond_what_was_spanned_is_out_of_reach():
    assert audited(careful(), target_compute=1e22)["reach"].status == "passed"
    far = audited(careful(), target_compute=1e25)["reach"]
    assert (far.status, "e22" in (far.remedy or "")) == ("failed", True)


def test_an_upper_budget_that_breaks_the_law_fails_the_backtest():
    points = [replace(p, loss=p.loss * 1.03) if (p.compute_budget_flops or 0) > 5e20 else p for p in careful()]
    check = audited(points)["backtest"]
    assert check.status == "failed"
    assert "1e21" in check.found


def test_points_without_a_law_are_still_audited():
    found = audited([p for p in careful() if p.compute_budget_flops == careful()[0].compute_budget_flops])
    assert found["law"].status == "failed"
    assert found["delta"].status == "unknown"
    assert found["compute_range"].status == "failed"


def test_nothing_usable_is_an_error():
    with pytest.raises(FitError, match="no run can be used"):
        audited([replace(careful()[0], loss=float("nan"))])


def test_the_command_prints_json_and_a_page_that_says_the_same(tmp_path):
    path = write_csv(tmp_path / "runs <b>.csv", careful()[:35], "N,D,loss")
    report = run_json("audit", path, "--json", "--html", tmp_path / "a.html")
    assert report["passed"] + report["failed"] + report["unknown"] == len(report["checks"]) > 15
    page = (tmp_path / "a.html").read_text()
    body = ElementTree.fromstring(page[page.index("<body>") : page.index("</html>")])
    rows = {row.get("id"): [cell.text or "" for cell in row] for row in body.iter("tr") if row.get("id")}
    assert [rows[c["code"]][2] for c in report["checks"]] == [c["found"] for c in report["checks"]]
    assert "<b>.csv" not in page.replace("&lt;b&gt;.csv", "")
    code, output = invoke("audit", path)
    assert code == 0
    assert all(check["title"] in output for check in report["checks"])


def test_fits_tables_and_several_at_once_are_sources(tmp_path):
    points = careful()[:35]
    fit = fit_scaling_law(points, bootstrap_samples=0, diagnostics=False, other_forms=False)
    (tmp_path / "fit.json").write_text(json.dumps(fit.to_json_dict()))
    table = write_csv(tmp_path / "more.csv", sweep(6)[1], "N,D,loss")
    assert run_json("audit", tmp_path / "fit.json", "--json")["num_points"] == 35
    both = read_sources([tmp_path / "fit.json", table])
    assert len(both.points) == 75
    assert {point.label.split(":")[0].endswith(("fit.json", "more.csv")) for point in both.points} == {True}
    assert len({point.row for point in both.points}) == 75


def test_an_audit_takes_little_time(tmp_path):
    path = Path(write_csv(tmp_path / "runs.csv", careful()[:35], "N,D,loss"))
    source = read_sources([path])
    audit_runs(source)
    began = time.process_time()
    audit_runs(source)
    assert time.process_time() - began < 2.0

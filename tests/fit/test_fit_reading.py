"""Tables of any origin, and bad ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopsfit_ds.base.errors import DataError, FitError
from flopsfit_ds.fit import Point, fit_scaling_law, load_points
from flopsfit_ds.fit.points.reading import MAX_ROWS
from helpers.fit.planted_sweeps import sweep, write_csv


@pytest.mark.parametrize(
    "header",
    ["N,D,loss", "params,tokens,Loss", "Model Size,Training Tokens,val_loss", "n_params,n_tokens,final loss (nats)"],
)
def test_common_spellings(tmp_path: Path, header: str) -> None:
    _, points = sweep()
    table = load_points(write_csv(tmp_path / "runs.csv", points, header))
    assert [(p.num_params, p.num_tokens, p.loss) for p in table.points] == [
        (p.num_params, p.num_tokens, p.loss) for p in points
    ]


@pytest.mark.parametrize(
    ("header", "scales"),
    [
        ("Params (M),Tokens (B),Loss (nats)", (1e6, 1e9)),
        ("Model Size [billions],Training Tokens [10^9 tokens],loss", (1e9, 1e9)),
        ("params (non-embedding),tokens (D),loss", (1.0, 1.0)),
    ],
)
def test_units_of_a_header_count(tmp_path: Path, header: str, scales: tuple[float, float]) -> None:
    (tmp_path / "runs.csv").write_text(f"{header}\n125,2.5,3.2\n")
    (point,) = load_points(tmp_path / "runs.csv").points
    assert (point.num_params, point.num_tokens, point.loss) == (125 * scales[0], 2.5 * scales[1], 3.2)


def test_units_of_compute_count_or_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("N,Compute (EFLOPs),loss\n1e9,6,3.2\n")
    assert load_points(path).points[0].num_tokens == pytest.approx(1e9)
    path.write_text("N,Compute (PF-days),loss\n125e6,0.02,3.2\n")
    with pytest.raises(DataError, match="unknown unit 'PF-days'"):
        load_points(path)


def test_two_of_three_give_the_third(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("C,D,N,loss\n6e18,1e9,,3\n6e18,,1e9,3\n,1e9,1e9,3\n,,1e9,3\n")
    table = load_points(path)
    assert [(p.num_params, p.num_tokens, p.compute_flops) for p in table.points] == [(1e9, 1e9, 6e18)] * 3
    assert [(e.row, "two of" in e.reason) for e in table.excluded] == [(4, True)]
    assert "6 N D" in table.convention


def test_other_columns_are_named(tmp_path: Path) -> None:
    _, points = sweep()
    path = write_csv(tmp_path / "runs.csv", points, "weights,seen,bits")
    with pytest.raises(DataError, match="--loss-column"):
        load_points(path)
    table = load_points(path, {"num_params": "weights", "num_tokens": "seen", "loss": "bits"})
    assert len(table.points) == len(points)
    with pytest.raises(DataError, match="no column 'heft'"):
        load_points(path, {"num_params": "heft", "num_tokens": "seen", "loss": "bits"})


def test_two_columns_for_one_quantity_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("N,D,val_loss,test_loss\n1e6,1e8,3,3.1\n")
    with pytest.raises(DataError, match="val_loss, test_loss could all be loss"):
        load_points(path)


def test_malformed_tables_are_not_misread(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("N,D,loss,loss\n1e6,1e8,3.1,9.9\n")
    with pytest.raises(DataError, match="several columns called loss"):
        load_points(path)
    path.write_text("N,D,loss\n1,234,567,1e9,3.1\n1e6,1e8,3.0,\n")
    table = load_points(path)
    assert [p.row for p in table.points] == [2]
    assert [(e.row, "2 cells more" in e.reason) for e in table.excluded] == [(1, True)]


def test_formats_agree(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    _, points = sweep()
    rows = [{"N": p.num_params, "D": p.num_tokens, "loss": p.loss, "name": f"run {k}"} for k, p in enumerate(points)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "runs.parquet")
    (tmp_path / "runs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "runs.csv").write_text("N,D,loss,name\n" + "\n".join(",".join(map(str, r.values())) for r in rows))
    one, two, three = (load_points(tmp_path / f"runs.{s}").points for s in ("parquet", "jsonl", "csv"))
    assert one == two == three
    whole = (tmp_path / "runs.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        load_points(tmp_path / "torn.parquet")


def test_unusable_rows_are_listed_with_their_reasons(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    lines = ["N,D,loss,status", "1e6,1e8,3.1,completed", "about a million,1e8,3,completed", "2M,1e8,3.0,completed"]
    lines += ["1e6,1e8,,completed", "1e6,-1,3,completed", "1e6,1e8,3,diverged", "1e6,inf,3,completed"]
    path.write_text("\n".join(lines))
    table = load_points(path)
    assert [p.row for p in table.points] == [1, 3]
    assert table.points[1].num_params == 2e6
    reasons = {e.row: e.reason for e in table.excluded}
    assert set(reasons) == {2, 4, 5, 6, 7}
    assert "about a million" in reasons[2]
    assert "diverged" in reasons[6]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("N,D,loss\n", "no rows"),
        ("N,loss\n1,2\n", "two of"),
        ("N,D,loss\na,b,c\n", "none of 1"),
    ],
)
def test_files_without_points(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_points(path)


def test_a_million_rows_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("N,D,loss\n" + "1e6,1e8,3\n" * 1_000_000)
    with pytest.raises(DataError, match=f"more than {MAX_ROWS:,} rows"):
        load_points(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_points(tmp_path / "absent.csv")
    (tmp_path / "runs.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match="unknown format"):
        load_points(tmp_path / "runs.xlsx")
    (tmp_path / "runs.csv").write_bytes(b"\xff\xfe\x00N")
    with pytest.raises(DataError, match="UTF-8"):
        load_points(tmp_path / "runs.csv")
    (tmp_path / "runs.jsonl").write_text('{"N": 1}\n{"N": ')
    with pytest.raises(DataError, match="line 2"):
        load_points(tmp_path / "runs.jsonl")


def test_numbers_and_nesting_that_python_cannot_hold_are_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("N,D,loss,seed\n1e6,1e8,3.1,inf\n1e6,1e8,3.1,1e400\n1e6,1e8,3.1,2\n")
    table = load_points(tmp_path / "runs.csv")
    assert [(e.row, "seed" in e.reason) for e in table.excluded] == [(1, True), (2, True)]
    (tmp_path / "runs.jsonl").write_text(f'{{"N": 1{"0" * 400}, "D": 1, "loss": 3}}\n{{"N": 1, "D": 1, "loss": 3}}')
    assert "1e308" in load_points(tmp_path / "runs.jsonl").excluded[0].reason
    (tmp_path / "runs.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not JSON"):
        load_points(tmp_path / "runs.json")


@pytest.mark.parametrize("budget", [-1.0, 0.0, math.nan, math.inf, 1.0])
def test_budgets_that_are_none_are_left_out_with_a_reason(budget: float) -> None:
    _, points = sweep()
    spoilt = [replace(p, compute_budget_flops=budget) for p in points[:4]] + points[4:]
    fit = fit_scaling_law(spoilt, bootstrap_samples=0, other_forms=False, diagnostics=False)
    assert [("compute budget" in e.reason) for e in fit.excluded] == [True] * 4


@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl", "parquet", "json"]))
def test_no_bytes_make_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"runs.{suffix}"
    path.write_bytes(content)
    try:
        load_points(path)
    except DataError:
        return


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["loss", "num_params", "num_tokens"])
def test_impossible_values_are_left_out_with_a_reason(name: str, value: float) -> None:
    _, points = sweep()
    spoilt = [replace(points[0], **{name: value}), *points[1:]]
    fit = fit_scaling_law(spoilt, bootstrap_samples=0, other_forms=False, diagnostics=False)
    assert len(fit.points) == len(points) - 1
    assert [e.row for e in fit.excluded] == [1]


def test_a_mistaken_unit_is_left_out_with_a_reason() -> None:
    _, points = sweep()
    spoilt = [replace(points[0], num_params=1e30), *points[1:]]
    fit = fit_scaling_law(spoilt, bootstrap_samples=0, other_forms=False, diagnostics=False)
    assert [(e.row, "mistaken unit" in e.reason) for e in fit.excluded] == [(1, True)]


def test_points_that_cannot_carry_a_law_are_refused_with_the_numbers() -> None:
    _, points = sweep()
    cases = {
        "5 distinct points": points[:5],
        "1 different sizes": [replace(p, num_params=1e8) for p in points],
        "2 different sizes": [replace(p, num_params=1e8 if k % 2 else 1e9) for k, p in enumerate(points)],
        "2 different numbers of tokens": [replace(p, num_tokens=1e9 if k % 2 else 2e9) for k, p in enumerate(points)],
        "one compute budget": [p for p in points if p.compute_budget_flops == 1e19],
        "0 distinct points": [],
    }
    for message, few in cases.items():
        with pytest.raises(FitError, match=message):
            fit_scaling_law(few)
    with pytest.raises(FitError, match="no point repeats its data"):
        fit_scaling_law(points, law="data-constrained")


@pytest.mark.parametrize("loss", [lambda p: 3.0, lambda p: 2.0 + 0.1 * math.log10(p.compute_flops)])
def test_losses_that_are_constant_or_rise_are_an_error_not_a_number(loss) -> None:
    _, points = sweep()
    with pytest.raises(FitError, match="ran to a bound"):
        fit_scaling_law([replace(p, loss=loss(p)) for p in points], bootstrap_samples=20)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda p: 2.0 + 400 / p.num_params**0.34, r"^B.* do not fall with tokens as"),
        (lambda p: 2.0 + 410 / p.num_tokens**0.28, r"^A.* do not fall with parameters as"),
    ],
)
def test_losses_that_one_of_the_two_leaves_alone_name_it(loss, said: str) -> None:
    _, points = sweep()
    with pytest.raises(FitError, match=said):
        fit_scaling_law([replace(p, loss=loss(p)) for p in points], bootstrap_samples=0)


def test_unknown_options_are_refused() -> None:
    _, points = sweep()
    for options in (
        {"law": "newton"},
        {"loss": "absolute"},
        {"huber_delta": 0.0},
        {"level": 1.0},
        {"bootstrap_samples": 3},
    ):
        with pytest.raises(FitError):
            fit_scaling_law(points, **options)  # type: ignore[arg-type]
    with pytest.raises(FitError, match="unknown bootstrap"):
        fit_scaling_law(points, bootstrap="jackknife", bootstrap_samples=20)


def test_under_tuned_learning_rates_are_left_out_and_an_edge_is_told() -> None:
    _, points = sweep()
    tried = [replace(p, learning_rate=1e-3, row=k) for k, p in enumerate(points)]
    worse = [replace(p, learning_rate=3e-3, loss=p.loss * 1.02, row=100 + k) for k, p in enumerate(points[:3])]
    fit = fit_scaling_law([*tried, *worse], bootstrap_samples=0, other_forms=False)
    assert {e.row for e in fit.excluded} == {100, 101, 102}
    assert all("under-tuned" in e.reason for e in fit.excluded)
    assert "learning_rate_edge" in {w.code for w in fit.warnings}
    middle = [replace(p, learning_rate=3e-4, loss=p.loss * 1.01, row=200 + k) for k, p in enumerate(points[:3])]
    fit = fit_scaling_law([*tried, *worse, *middle], bootstrap_samples=0, other_forms=False)
    assert "learning_rate_edge" not in {w.code for w in fit.warnings}


def test_a_learning_rate_that_is_not_a_number_is_no_rate() -> None:
    _, points = sweep()
    seeds = [replace(p, learning_rate=math.nan, seed=k, loss=p.loss * (1 + 0.001 * k)) for p in points for k in (0, 1)]
    fit = fit_scaling_law(seeds, bootstrap_samples=0, other_forms=False, diagnostics=False)
    assert len(fit.points) == len(seeds)


def test_exact_flops_of_small_models_set_the_compute_rule() -> None:
    planted, points = sweep()
    exact = [replace(p, flops=12.0 * p.num_params**0.95 * p.num_tokens, compute_budget_flops=None) for p in points]
    fit = fit_scaling_law(exact, bootstrap_samples=0, other_forms=False, diagnostics=False)
    assert "N^0.950" in fit.audit.compute_rule
    optimum = fit.optimum(1e20)
    assert 12.0 * optimum.num_params**0.95 * optimum.num_tokens == pytest.approx(1e20, rel=1e-3)
    at = planted.loss
    for size in (0.8, 1.25):
        n = optimum.num_params * size
        assert at_loss(at, n, 1e20 / 12.0 / n**0.95) > at_loss(at, optimum.num_params, optimum.num_tokens) * (1 - 1e-4)


def test_the_optimum_at_the_target_costs_the_target() -> None:
    """FLOPs of a family whose C/(N D) saturates: a power law of N carried on to the target would be far off there."""
    _, points = sweep()

    def per_pair(num_params: float) -> float:
        return 6.2 * (1.0 - 0.25 * (num_params / 5e7) ** -0.6)

    family = [replace(p, flops=per_pair(p.num_params) * p.num_params * p.num_tokens) for p in points]
    fit = fit_scaling_law(family, bootstrap_samples=0, other_forms=False, diagnostics=False, target_compute=1e24)
    best = fit.optima[-1]
    assert best.num_params > 5 * max(p.num_params for p in points)
    assert per_pair(best.num_params) * best.num_params * best.num_tokens == pytest.approx(1e24, rel=0.02)
    middle = fit.optimum(1e19)
    assert per_pair(middle.num_params) * middle.num_params * middle.num_tokens == pytest.approx(1e19, rel=0.03)
    given = fit.predict(1e20, num_tokens=2e9)
    assert fit.predict(1e20, num_params=given.num_params).num_tokens == pytest.approx(2e9, rel=1e-9)


def test_flops_that_are_off_are_told() -> None:
    _, points = sweep()
    quick = {"bootstrap_samples": 0, "other_forms": False, "diagnostics": False, "target_compute": 1e24}

    def codes(flops) -> set[str]:
        spoilt = [replace(p, flops=flops(k, p), compute_budget_flops=None) for k, p in enumerate(points)]
        return {w.code for w in fit_scaling_law(spoilt, **quick).warnings}

    assert "unusual_flops" in codes(lambda k, p: 1e-15 * p.compute_flops)
    assert "compute_misfit" in codes(lambda k, p: (1.0 + 0.3 * (k % 2)) * p.compute_flops)
    assert "compute_extrapolated" in codes(lambda k, p: (p.num_params / 1e8) ** -0.2 * p.compute_flops)


def at_loss(loss, num_params: float, num_tokens: float) -> float:
    import numpy as np

    return float(loss(np.array([num_params]), np.array([num_tokens]))[0])


def test_a_point_without_flops_follows_the_convention() -> None:
    assert Point(1e9, 2e10, 2.0).compute_flops == 6 * 1e9 * 2e10


def test_columns_in_the_groups_of_a_tracker_are_known(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    header = '"Name","State","Runtime","model/n_params","data/train_tokens","optim/lr","_step","eval/loss","train/loss"'
    rows = [f'"r{k}","{state}","9","{1 + k}e6","2e8","3e-4","10","3.5","3.4"' for k, state in enumerate(_STATES)]
    path.write_text("\n".join([header, *rows]))
    table = load_points(path)
    found = [(p.num_params, p.num_tokens, p.loss, p.learning_rate, p.label) for p in table.points]
    assert found == [(1e6, 2e8, 3.5, 3e-4, "r0")]
    assert [(e.row, e.name, e.reason) for e in table.excluded] == [
        (k + 1, f"r{k}", f"status {_STATES[k]}") for k in range(1, len(_STATES))
    ]


_STATES = ("finished", "crashed", "running", "killed", "failed")


@pytest.mark.parametrize(
    "header",
    [
        "config.model.num_params,config.data.num_tokens,summary.eval_loss",
        "params.n_params,params.tokens,metrics.val/loss",
    ],
)
def test_groups_stand_in_groups(tmp_path: Path, header: str) -> None:
    (tmp_path / "runs.csv").write_text(f"{header}\n1e6,2e8,3.5\n")
    (point,) = load_points(tmp_path / "runs.csv").points
    assert (point.num_params, point.num_tokens, point.loss) == (1e6, 2e8, 3.5)


@pytest.mark.parametrize(
    ("header", "flag"),
    [
        ("N,D,train/loss", "--loss-column"),  # no held-out loss
        ("N,eval/tokens,loss", "--num-tokens-column"),  # not what a run was trained on
        ("data/n,D,loss", "--num-params-column"),
    ],
)
def test_a_group_that_means_something_else_is_not_taken_off(tmp_path: Path, header: str, flag: str) -> None:
    (tmp_path / "runs.csv").write_text(f"{header}\n1e6,2e8,3.5\n")
    with pytest.raises(DataError, match=flag):
        load_points(tmp_path / "runs.csv")


def test_a_whole_name_counts_before_one_in_a_group_and_two_groups_are_a_question(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("params,config/params,tokens,loss\n1e6,7,2e8,3.5\n")
    assert load_points(path).points[0].num_params == 1e6
    path.write_text("N,tokens,eval/final_loss,test/final_loss\n1e6,2e8,3.5,3.6\n")
    with pytest.raises(DataError, match="eval/final_loss, test/final_loss could all be loss"):
        load_points(path)

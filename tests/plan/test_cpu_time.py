"""Times of a plan for a CPU: none without a measurement, and what runs took with one."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from flopsfit_ds.base.units import format_seconds
from flopsfit_ds.cli.options import plan_from
from flopsfit_ds.engine.slurm.submissions import plan_submissions
from flopsfit_ds.plan.recorded import cpu_time
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import Attempt, Observed, Planned, RunRecord
from helpers.cli_in_process import invoke, run_json

BLOCK_SECONDS, FLOPS_A_SECOND, OTHER_SECONDS = 4e-4, 2e10, 5.0
NARROW = ("design.compute_budgets=[2e11, 4e11]", "name=other")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing was trained, with two slots."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")


def _plan(*overrides: str) -> SweepPlan:
    return plan_from("quickstart", ["hardware.device=cpu", "hardware.gpus_per_node=2", *overrides], None)


def _records(plan: SweepPlan, slower: float = 1.0) -> list[RunRecord]:
    """What a machine with these three numbers would record."""
    records = []
    for run in plan.runs:
        place = run.placement
        work = place.profile.num_blocks * place.gradient_accumulation_steps * run.num_steps * BLOCK_SECONDS
        seconds = slower * (work + run.flops / FLOPS_A_SECOND)
        sizes = (run.num_params_total, run.num_params_trainable, run.num_tokens, run.flops)
        seen = Observed(*sizes, None, None, seconds, 1.0, None, 0, 1, 0, None, {})
        planned = Planned(
            run.num_params_total,
            run.num_params_non_embedding,
            run.num_params_trainable,
            run.num_tokens,
            run.flops,
            0,
            1.0,
            0,
            1,
        )
        attempt = Attempt(1, "completed", None, ("0",), 0, 1, 1, 1, 0, 0.0, seconds + OTHER_SECONDS)
        records.append(
            RunRecord(
                run.run_id,
                run.label,
                "completed",
                None,
                2.0,
                0.01,
                1000,
                run.compute_budget_flops,
                0,
                1e-3,
                None,
                "fp32",
                {},
                planned,
                seen,
                (attempt,),
                {},
                None,
                platform.node(),
                "cpu",
                0.0,
                None,
            )
        )
    return records


def _flags(plan: SweepPlan) -> tuple[str, ...]:
    return ("hardware.device=cpu", "hardware.gpus_per_node=2", *(NARROW if plan.name == "other" else ()))


def _seconds(plan: SweepPlan) -> list[float | None]:
    return [run.placement.predicted_seconds for run in plan.runs]


def test_without_a_measurement_no_command_gives_a_time_and_each_says_why() -> None:
    plan = _plan()
    assert set(_seconds(plan)) == {None}
    assert plan.makespan() is None
    _, shown = invoke("plan", "quickstart", *_flags(plan))
    assert "time: not measured on this machine; the first sweep here measures it" in shown
    _, price = invoke("preview", "quickstart", *_flags(plan))
    assert "not measured on this machine" in price
    _, dry = invoke("sweep", "quickstart", *_flags(plan), "--dry-run")
    assert "time: not measured on this machine" in dry
    for text in (shown, price, dry):
        for word in ("GPU-hours", "ends after", "done after", "expected"):
            assert word not in text
    values = run_json("plan", "quickstart", *_flags(plan), "--json")
    assert values["time_source"].startswith("not measured on this machine")
    for run in values["runs"]:
        place = run["placement"]
        assert [place[f"predicted_{name}"] for name in ("seconds", "gpu_hours", "cost")] == [None, None, None]
    assert "time: not measured" in plan._repr_html_()


def test_the_time_of_another_sweep_is_what_such_runs_took_wherever_it_is_shown() -> None:
    cpu_time.remember(_plan(), _records(_plan()))
    other = _plan(*NARROW)
    took = [record.attempts[0].seconds for record in _records(other)]
    assert _seconds(other) == pytest.approx(took, rel=1e-6)
    _, shown = invoke("plan", "quickstart", *_flags(other))
    assert "time: by 15 runs that were trained on this machine" in shown
    assert "the last run ends after" in shown
    _, price = invoke("preview", "quickstart", *_flags(other))
    assert "done after" in price
    values = run_json("plan", "quickstart", *_flags(other), "--json")
    assert [run["placement"]["predicted_seconds"] for run in values["runs"]] == pytest.approx(took, rel=1e-6)
    assert format_seconds(took[0]) in other._repr_html_()
    schedule = run_json("sweep", "quickstart", *_flags(other), "--dry-run", "--json")["schedule"]
    assert sum(took) / 2 <= schedule["makespan_seconds"] < sum(took)


def test_what_is_trained_where_does_not_depend_on_what_was_trained_before() -> None:
    before = _plan()
    cpu_time.remember(before, _records(before, slower=50))
    after = _plan()
    assert after.makespan() is not None
    assert [run.placement.layout for run in after.runs] == [run.placement.layout for run in before.runs]


def test_slurm_is_asked_for_the_time_that_such_runs_took_or_for_no_limit() -> None:
    assert {job.minutes for job in plan_submissions(_plan())} == {None}
    cpu_time.remember(_plan(), _records(_plan(), slower=50))
    plan = _plan()
    took = {run.run_id: run.placement.predicted_seconds for run in plan.runs}
    for job in plan_submissions(plan):
        assert job.minutes is not None
        assert job.minutes * 60 > sum(took[run_id] or 0.0 for run_id in job.run_ids)
    assert max(each or 0.0 for each in took.values()) > 600  # by the model that ranks layouts all are short


def test_a_plan_of_other_slots_or_precision_or_far_larger_steps_is_not_measured() -> None:
    cpu_time.remember(_plan(), _records(_plan()))
    assert set(_seconds(_plan("hardware.gpus_per_node=1"))) == {None}
    assert set(_seconds(_plan("training.precision=bf16"))) == {None}
    far = _plan("training.global_batch_tokens=65536", "design.compute_budgets=[1e13]")
    assert set(_seconds(far)) == {None}
    assert "at such steps" in far.time_source


def test_runs_that_say_little_are_not_kept() -> None:
    plan = _plan()
    resumed = [replace(each, attempts=(replace(each.attempts[0], start_step=7),)) for each in _records(plan)]
    elsewhere = [replace(each, host="another") for each in _records(plan)]
    failed = [replace(each, status="failed") for each in _records(plan)]
    for records in (resumed, elsewhere, failed, _records(plan)[:2]):
        cpu_time.remember(plan, records)  # pyright: ignore[reportArgumentType]
        assert set(_seconds(_plan())) == {None}


def test_a_torn_file_is_no_measurement(tmp_path: Path) -> None:
    plan = _plan()
    cpu_time.remember(plan, _records(plan))
    (file,) = (tmp_path / "flopsfit-ds" / "cpu-time").iterdir()
    file.write_text(file.read_text()[:40])
    assert set(_seconds(_plan())) == {None}
    cpu_time.remember(plan, _records(plan))
    assert None not in _seconds(_plan())


def test_a_plan_for_gpus_keeps_its_times() -> None:
    plan = plan_from("isoflop_8xh100", None, None)
    assert cpu_time.with_times(plan) is plan
    assert plan.time_source == ""
    assert None not in _seconds(plan)


def test_a_sweep_of_years_says_so_of_a_cpu_without_a_number() -> None:
    plan = _plan("design.compute_budgets=[1e21]", "data.heldout_tokens=8192")
    assert any("takes years on 2 CPU slots" in warning for warning in plan.warnings)

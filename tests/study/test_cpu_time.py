"""Times of a plan for a CPU: none without a measurement, and what runs took with one."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from flopsfit_ds.cli.options import plan_from
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import Attempt, Observed, Planned, RunRecord
from flopsfit_ds.study import cpu_time
from helpers.cli_in_process import invoke

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


def test_without_a_measurement_no_command_prints_a_time() -> None:
    plan = _plan()
    assert cpu_time.timed_plan(plan) is None
    _, shown = invoke("plan", "quickstart", *_flags(plan))
    assert "time: not measured on this machine; the first sweep here measures it" in shown
    _, price = invoke("preview", "quickstart", *_flags(plan))
    assert "not measured on this machine" in price
    for text in (shown, price):
        assert "GPU-hours" not in text
        assert "ends after" not in text
        assert "done after" not in text


def test_the_time_of_another_sweep_is_what_such_runs_took() -> None:
    cpu_time.remember(_plan(), _records(_plan()))
    other = _plan(*NARROW)
    timed = cpu_time.timed_plan(other)
    assert timed is not None
    for run, record in zip(timed.runs, _records(other), strict=True):
        assert run.placement.predicted_seconds == pytest.approx(record.attempts[0].seconds, rel=1e-6)
    _, shown = invoke("plan", "quickstart", *_flags(other))
    assert "time: by 15 runs that were trained on this machine" in shown
    assert "the last run ends after" in shown
    _, price = invoke("preview", "quickstart", *_flags(other))
    assert "done after" in price


def test_a_plan_of_other_slots_or_precision_or_far_larger_steps_is_not_measured() -> None:
    cpu_time.remember(_plan(), _records(_plan()))
    assert cpu_time.timed_plan(_plan("hardware.gpus_per_node=1")) is None
    assert cpu_time.timed_plan(_plan("training.precision=bf16")) is None
    assert cpu_time.timed_plan(_plan("training.global_batch_tokens=65536", "design.compute_budgets=[1e13]")) is None
    assert "at such steps" in cpu_time.words(
        _plan("training.global_batch_tokens=65536", "design.compute_budgets=[1e13]")
    )


def test_runs_that_say_little_are_not_kept() -> None:
    plan = _plan()
    resumed = [replace(each, attempts=(replace(each.attempts[0], start_step=7),)) for each in _records(plan)]
    elsewhere = [replace(each, host="another") for each in _records(plan)]
    failed = [replace(each, status="failed") for each in _records(plan)]
    for records in (resumed, elsewhere, failed, _records(plan)[:2]):
        cpu_time.remember(plan, records)  # pyright: ignore[reportArgumentType]
        assert cpu_time.timed_plan(plan) is None


def test_a_torn_file_is_no_measurement(tmp_path: Path) -> None:
    plan = _plan()
    cpu_time.remember(plan, _records(plan))
    (file,) = (tmp_path / "flopsfit-ds" / "cpu-time").iterdir()
    file.write_text(file.read_text()[:40])
    assert cpu_time.timed_plan(plan) is None
    cpu_time.remember(plan, _records(plan))
    assert cpu_time.timed_plan(plan) is not None


def test_a_plan_for_gpus_keeps_its_times() -> None:
    plan = plan_from("isoflop_8xh100", None, None)
    assert cpu_time.timed_plan(plan) is plan
    assert cpu_time.words(plan) == ""

"""A sweep's files reach each tracker through its own library, and what the tracker keeps gives the same points back."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sqlite3
import sys
from pathlib import Path

import pytest

from flopsfit_ds.engine.disk.folder import write_plan
from flopsfit_ds.fit import load_points, points_from_records
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.study.tracking import Tracking, beside
from flopsfit_ds.study.tracking.following import _STEPS_SENT, _thinned
from flopsfit_ds.study.tracking.services import SERVICES
from helpers.run_records import OBSERVED, PLANNED, RECORD
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus

WHERE = {
    "tensorboard": "trackers/tensorboard",
    "wandb": "trackers/wandb",
    "mlflow": "trackers/mlflow.db",
    "trackio": "trackers/trackio/micro.db",
}
POINTS = [{"num_params": 6e3, "num_tokens": 12800}, {"num_params": 1.2e4, "num_tokens": 25600}]


def sweep_of(tmp_path: Path, *names: str) -> SweepPlan:
    write_bytes_corpus(tmp_path / "corpus.txt", 20_000)
    values = with_values(
        MICRO, design={"method": "points", "points": POINTS}, output_root=str(tmp_path), trackers=list(names)
    )
    plan = plan_of(values, tmp_path)
    folder = SweepFolder(plan.folder)
    folder.prepare()
    write_plan(plan, folder)
    return plan


def train(plan: SweepPlan, run: RunPlan, first: int, last: int) -> None:
    lines = [
        {"step": step, "loss": 5 - step / 100, "learning_rate": 1e-3, "seconds": step / 10, "gradient_norm": 0.5}
        for step in range(first, last + 1)
    ]
    SweepFolder(plan.folder).run(run.run_id).metrics.extend(lines)


def end(plan: SweepPlan, run: RunPlan, loss: float | None, status: str = "completed") -> None:
    record = dataclasses.replace(
        RECORD, run_id=run.run_id, label=run.label, loss=loss, status=status,
        planned=dataclasses.replace(PLANNED, num_params_total=run.num_params_total),
        observed=dataclasses.replace(OBSERVED, num_tokens=run.num_tokens, flops=run.flops),
    )  # fmt: skip
    SweepFolder(plan.folder).run(run.run_id).write_record(record)


def points(plan: SweepPlan) -> list[tuple[float, ...]]:
    records = SweepFolder(plan.folder).records()
    return sorted((p.num_params, p.num_tokens, p.loss, p.compute_flops) for p in points_from_records(records).points)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "micro" / "trackers" / "trackio"))
    for name in ("MLFLOW_TRACKING_URI", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_a_database_of_mlflow_whose_making_was_cut_short_is_made_again(tmp_path, monkeypatch):
    """A sweep stopped in its first seconds left one that MLflow refuses: `duplicate column name`."""
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install '.[trackers]'")
    (tmp_path / "mlflow.db.unfinished").write_bytes(b"half of a database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # to be put back as it was
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    SERVICES["mlflow"]("sweep", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT COUNT(*) FROM alembic_version").fetchone() == (1,)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHERE)
def test_a_tracker_gives_back_the_points_of_a_sweep_of_two_sessions(name, tmp_path):
    pytest.importorskip(beside._LIBRARIES[name], reason=f"{name} is not installed: pip install '.[trackers]'")
    plan, told = sweep_of(tmp_path, name), []
    short, long = plan.runs
    with contextlib.suppress(KeyboardInterrupt), Tracking(plan, told.append) as tracking:
        tracking.start()
        train(plan, short, 1, short.num_steps)
        end(plan, short, 2.345678)
        train(plan, long, 1, 40)
        raise KeyboardInterrupt
    with Tracking(plan, told.append) as tracking:
        tracking.start()
        train(plan, long, 41, long.num_steps)
        end(plan, long, 2.123456)
        page = SweepFolder(plan.folder).report
        page.mkdir()
        (page / "index.html").write_text("<p>the report</p>")
    assert told == []
    table = load_points(plan.folder / WHERE[name])
    found = sorted((p.num_params, p.num_tokens, p.loss, p.compute_flops) for p in table.points)
    assert found == [pytest.approx(point, rel=1e-6) for point in points(plan)]
    assert {p.label for p in table.points if p.label} >= {f"{short.label}.{short.run_id[:6]}"} or name == "wandb"
    if name != "tensorboard":  # it has no artifacts
        kept = [
            path
            for path in tmp_path.rglob("*")
            if path.is_file() and "the report" in path.read_bytes().decode("latin1")
        ]
        assert len(kept) >= 2, "the page, and the tracker's copy of it"
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(next((plan.folder / WHERE[name]).glob(f"{long.label}*"))))
        events.Reload()
        steps = [event.step for event in events.Scalars("train/loss")]
        assert steps == list(range(1, long.num_steps + 1)), "no step is told twice, and none is missing"
        tokens = [event.value for event in events.Scalars("tokens")]
        assert tokens[-1] == long.num_tokens


@pytest.mark.slow
def test_a_run_that_diverged_is_no_point_of_what_a_tracker_keeps(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[tensorboard]'")
    plan = sweep_of(tmp_path, "tensorboard")
    for run, status in zip(plan.runs, ("completed", "diverged"), strict=True):
        train(plan, run, 1, 30)
        end(plan, run, 2.5 if status == "completed" else None, status)
    with Tracking(plan, lambda _: None):
        pass  # nothing is trained: what is on disk is told all the same
    table = load_points(plan.folder / WHERE["tensorboard"])
    assert [p.num_params for p in table.points] == [plan.runs[0].num_params_total]
    assert any("is empty" in gone.reason for gone in table.excluded)


@pytest.mark.slow
def test_a_tracker_that_fails_is_said_and_noted_and_stops_nothing(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[tensorboard]'")
    plan, told, trained = sweep_of(tmp_path, "tensorboard"), [], False
    (plan.folder / "trackers").mkdir()
    (plan.folder / "trackers" / "tensorboard").write_text("no folder")
    with Tracking(plan, told.append) as tracking:
        tracking.start()
        train(plan, plan.runs[0], 1, 30)
        end(plan, plan.runs[0], 2.5)
        trained = True
    assert trained
    (sentence,) = told
    assert sentence.startswith("trackers: tensorboard: ")
    assert "Error" in sentence
    (event,) = SweepFolder(plan.folder).events.read()
    assert (event["event"], event["name"]) == ("tracker", "tensorboard")
    assert event["problem"] in sentence


def test_a_tracker_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(beside, "_LAST_SECONDS", 0.2)
    monkeypatch.setattr(beside, "_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(600)"])
    told = []
    with Tracking(sweep_of(tmp_path, "wandb"), told.append) as tracking:
        tracking.start()
    assert tracking._processes["wandb"].returncode is not None
    assert "was stopped" in told[0]


def test_a_library_that_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = []
    with Tracking(sweep_of(tmp_path, "mlflow"), told.append) as tracking:
        tracking.start()
    assert told == [
        "trackers: mlflow: mlflow is not installed: pip install 'flopsfit-ds[trackers]', or take it out of trackers"
    ]


def test_trackers_change_no_run(tmp_path):
    ids = [[run.run_id for run in sweep_of(tmp_path, *names).runs] for names in ((), ("tensorboard", "mlflow"))]
    assert ids[0] == ids[1]


def test_a_long_run_is_thinned_alike_in_any_sessions():
    rows = [{"step": step} for step in range(1, 100_001)]
    whole = [row["step"] for row in _thinned(rows, 100_000)]
    assert whole == [row["step"] for part in (rows[:777], rows[777:]) for row in _thinned(part, 100_000)]
    assert {whole[0], whole[-1]} == {1, 100_000}
    assert len(whole) <= _STEPS_SENT + 1

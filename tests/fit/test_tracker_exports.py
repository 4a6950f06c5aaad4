"""Exports of trackers as people have them give one point for each run."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.fit import Point, load_points
from flopsfit_ds.fit.points.tracker_files import tracker_files
from helpers.cli_in_process import invoke
from helpers.fit.planted_sweeps import sweep


@pytest.fixture(scope="module")
def points() -> list[Point]:
    return sweep(4)[1]


def history(point: Point) -> list[tuple[int, dict[str, float | None]]]:
    """Three logged steps; the last one has no held-out loss."""
    tokens = point.num_tokens
    return [
        (100, {"data/train_tokens": 0.5 * tokens, "eval/loss": point.loss + 0.2, "train/loss": 1.0}),
        (200, {"data/train_tokens": tokens, "eval/loss": point.loss, "train/loss": 1.0}),
        (250, {"data/train_tokens": 1.1 * tokens, "eval/loss": None, "train/loss": 1.0}),
    ]


def config(point: Point) -> dict[str, float]:
    return {"model/n_params": point.num_params, "lr": 3e-4}


def write_api_table(path: Path, points: list[Point], spell: Callable[[object], str]) -> Path:
    """Columns `summary`, `config` and `name`, as the API of Weights & Biases is written by a data frame."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", "summary", "config", "name"])
        for k, point in enumerate(points):
            summary = {"eval/loss": point.loss, "data/train_tokens": point.num_tokens, "_wandb": {"runtime": 10}}
            writer.writerow([k, spell(summary), spell(config(point)), f"run-{k}"])
    return path


def write_api_lines(path: Path, points: list[Point]) -> Path:
    rows = [
        {
            "name": f"run-{k}",
            "state": "finished",
            "config": {"model": {"n_params": p.num_params}, "lr": 3e-4},
            "summary": {"eval/loss": p.loss, "train_tokens": p.num_tokens},
        }
        for k, p in enumerate(points)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def write_long(path: Path, points: list[Point]) -> Path:
    """TensorBoard's scalars as one long table."""
    rows = ["run,tag,step,value,wall_time"]
    for k, point in enumerate(points):
        rows.append(f"r{k},model/n_params,0,{point.num_params!r},1.0")
        for step, logged in history(point):
            rows += [f"r{k},{tag},{step},{value!r},1.0" for tag, value in logged.items() if value is not None]
    path.write_text("\n".join(rows) + "\n")
    return path


def write_steps(path: Path, points: list[Point]) -> Path:
    """A row for each logged step, as trackio's table and a history of Weights & Biases."""
    names = ["data/train_tokens", "eval/loss", "train/loss"]
    rows = ["timestamp,run_name,step,model/n_params," + ",".join(names)]
    for k, point in enumerate(points):
        for step, logged in history(point):
            cells = ["" if logged[name] is None else repr(logged[name]) for name in names]
            rows.append(f"2026-01-01,r{k},{step},{point.num_params!r},{','.join(cells)}")
    path.write_text("\n".join(rows) + "\n")
    return path


def write_trackio(path: Path, points: list[Point], by_id: bool) -> Path:
    """A project of trackio, in the schema of its version 0.43 or of an early one."""
    key = "run_id TEXT, " if by_id else ""
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE metrics (id INTEGER PRIMARY KEY, {key}timestamp, run_name, step, metrics)")
        database.execute(f"CREATE TABLE configs (id INTEGER PRIMARY KEY, {key}run_name, config, created_at)")
        for k, point in enumerate(points):
            own = [f"id-{k}"] if by_id else []
            names = "run_id, " if by_id else ""
            marks = ", ".join("?" * (3 + len(own)))
            database.execute(
                f"INSERT INTO configs ({names}run_name, config, created_at) VALUES ({marks})",
                [*own, f"r{k}", json.dumps(config(point)).encode(), "now"],
            )
            for step, logged in history(point):
                database.execute(
                    f"INSERT INTO metrics ({names}timestamp, run_name, step, metrics) VALUES ({marks}, ?)",
                    [*own, "now", f"r{k}", step, json.dumps(logged)],
                )
    database.close()
    return path


WAYS = {
    "python": lambda folder, points: write_api_table(folder / "api.csv", points, repr),
    "json": lambda folder, points: write_api_table(folder / "api.csv", points, json.dumps),
    "lines": lambda folder, points: write_api_lines(folder / "api.jsonl", points),
    "long": lambda folder, points: write_long(folder / "scalars.csv", points),
    "steps": lambda folder, points: write_steps(folder / "history.csv", points),
    "trackio": lambda folder, points: write_trackio(folder / "project.db", points, True),
    "early-trackio": lambda folder, points: write_trackio(folder / "project.db", points, False),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_export_holds_the_runs_it_was_made_of(way, points, tmp_path):
    table = load_points(WAYS[way](tmp_path, points))
    found = sorted((p.num_params, p.num_tokens, p.loss) for p in table.points)
    assert found == sorted((p.num_params, p.num_tokens, p.loss) for p in points)


@pytest.mark.parametrize("way", ["long", "steps", "trackio"])
def test_a_history_that_became_runs_is_told(way, points, tmp_path):
    export = WAYS[way](tmp_path, points)
    (told,) = load_points(export).excluded
    assert f"became {len(points)} runs" in told.reason
    _, said = invoke("audit", export)
    assert f"read: {told.reason}" in said
    assert "0 left out" in said


def test_a_table_of_runs_with_their_steps_is_no_history(points, tmp_path):
    rows = [f"r{k},500,{p.num_params!r},{p.num_tokens!r},{p.loss!r}" for k, p in enumerate(points)]
    (tmp_path / "runs.csv").write_text("\n".join(["name,step,n_params,tokens,loss", *rows]) + "\n")
    table = load_points(tmp_path / "runs.csv")
    assert (len(table.points), table.excluded) == (len(points), ())


def test_a_file_that_is_no_project_is_refused(tmp_path):
    (tmp_path / "x.db").write_bytes(b"no database at all, though it is long enough" * 20)
    with pytest.raises(DataError, match="no project of trackio"):
        load_points(tmp_path / "x.db")


def test_a_folder_that_vanishes_while_it_is_looked_through_is_passed_by(tmp_path, monkeypatch):
    kept = tmp_path / "run" / "events.out.tfevents.1"
    for folder in (kept.parent, tmp_path / "gone"):
        folder.mkdir()
    kept.touch()
    look = os.scandir

    def vanished(place):
        if str(place).endswith("gone"):
            raise FileNotFoundError(place)
        return look(place)

    monkeypatch.setattr(os, "scandir", vanished)
    assert list(tracker_files(tmp_path)) == [kept]

"""What files, names and errors hold is shown on a terminal and never obeyed; and standard output may go away."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from flopsfit_ds.base.text import printable, shown
from flopsfit_ds.cli import main
from flopsfit_ds.engine.disk.folder import write_plan
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.study.console import Console
from helpers.report.report_records import of_plan
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus

EVIL = "e\x1b[31m\x1b]0;t\x07\x9b2J\r\x08[red]x[/red]\u202e"
POINTS = {"method": "points", "points": [{"num_params": 6e3, "num_tokens": 12800 + 1280 * i} for i in range(6)]}


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A folder with such a name that holds a spec, a table, and a sweep whose records and events have such texts."""
    place = tmp_path / EVIL.replace("/", "|")
    place.mkdir()
    write_bytes_corpus(place / "corpus.txt")
    values = with_values(MICRO, design=POINTS)
    plan = replace(plan_of(values, place), folder=place / "outputs")
    (place / "spec.yaml").write_text(yaml.safe_dump(values))
    (place / "wrong.yaml").write_text(yaml.safe_dump({"name": EVIL, EVIL: EVIL, "design": {"method": EVIL}}))
    folder = SweepFolder(plan.folder)
    folder.prepare()
    write_plan(plan, folder)
    first, *others = of_plan(plan)
    evil_record = {"status": "failed", "loss": None, "reason": EVIL, "label": EVIL, "host": EVIL, "data": (EVIL,)}
    folder.run(first.run_id).write_record(replace(first, **evil_record))
    for record in others:
        folder.run(record.run_id).write_record(replace(record, host=EVIL, git_commit=EVIL))
        folder.log_event("start", run_id=record.run_id, label=EVIL, slots=[EVIL], layout="", predicted_seconds=5.0)
        end = {"attempt": 1, "slots": [EVIL], "outcome": "completed", "reason": EVIL, "seconds": 1.0}
        folder.log_event("end", run_id=record.run_id, **end)
    rows = "".join(f"{EVIL},{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}\n" for n, d in zip(NS, DS, strict=True))
    (place / "points.csv").write_text(f"name,N,D,loss\n{rows}{EVIL},{EVIL},1e9,2\n")
    monkeypatch.chdir(place)
    return place


NS = [int(1e6 * 2**i) for i in range(8) for _ in range(3)]
DS = [20 * n * factor for n, factor in zip(NS, [1, 3, 9] * 8, strict=True)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "spec.yaml"),
        ("plan", "wrong.yaml"),
        ("plan", EVIL),
        ("plan", "spec.yaml", f"training.precision={EVIL}"),
        ("sweep", "spec.yaml", "--dry-run"),
        ("sweep", "wrong.yaml"),
        ("retry", EVIL),
        ("fit", "points.csv", "--bootstrap", "0"),
        ("fit", "outputs", "--bootstrap", "0"),
        ("fit", f"{EVIL}.csv"),
        ("predict", "outputs/fit.json", "--params", "1e9", "--tokens", "1e10"),
        ("preview", "wrong.yaml"),
        ("report", "outputs"),
        ("report", EVIL),
        ("status", "outputs"),
        ("timeline", "outputs"),
        ("logs", "outputs", EVIL),
        ("curves", "outputs"),
        ("score", f"{EVIL}.json"),
        ("register", f"{EVIL}.json"),
        ("estimate-memory", "wrong.yaml"),
        ("specs",),
        ("hardware",),
        ("validate", "wrong.yaml"),
        ("schema",),
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(EVIL, "evil"),
)
def test_no_command_passes_a_control_character_on(evil, arguments, capfd):
    code = main.run(arguments)
    out, err = capfd.readouterr()
    assert code in (0, 1, 2)
    if arguments[0] != "schema":
        seen = {character for character in out + err if not (character.isprintable() or character in "\n\t")}
        assert not seen, (out, err)


def test_brackets_of_names_are_no_markup_and_bars_still_draw():
    console = Console(file=open(os.devnull, "w"), force_terminal=True, record=True)  # noqa: PTH123, SIM115
    console.print(EVIL, markup=False, highlight=False, style="red")
    text = console.export_text(styles=True)
    assert "[red]x[/red]" in text
    assert r"\x1b]0;t\x9b2J" in text, "rich itself leaves bells out"
    assert text.startswith("\x1b[31m"), "its own codes are left to the console"


def test_texts_are_made_printable_and_values_cut_short():
    assert printable("plain ± ü 漢 🙂\n\t") == "plain ± ü 漢 🙂\n\t"
    assert printable("\x1b[2J\u2028\ud800") == r"\x1b[2J\u2028\ud800"
    assert shown({"a": [1, "b"], "c": (1,)}) == "{'a': [1, 'b'], 'c': (1,)}"
    assert len(shown(["x" * 10**6] * 10**4)) == 80


@pytest.mark.parametrize("where", ["/dev/full", None, "a reader that leaves"])
def test_a_sweep_does_not_need_its_standard_output(tmp_path, where, faults):
    """Full, closed, or a pipe whose reader has left: trained, fitted and reported as always."""
    faults.inject("standard output full or closed")
    write_bytes_corpus(tmp_path / "corpus.txt")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(with_values(MICRO, design=POINTS)))
    plan = plan_of(with_values(MICRO, design=POINTS), tmp_path)
    plan = replace(plan, folder=tmp_path / "outputs" / plan.name)
    folder = SweepFolder(plan.folder)
    folder.prepare()
    for record in of_plan(plan):
        folder.run(record.run_id).path.mkdir()
        folder.run(record.run_id).write_record(record)
    command = [sys.executable, "-m", "flopsfit_ds.cli", "sweep", "spec.yaml"]
    leaves = '"$@" | true; exit ${PIPESTATUS[0]}'
    shell = {"/dev/full": 'exec "$@" >/dev/full', None: 'exec "$@" >&-'}.get(where, leaves)
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *command], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (plan.folder / "report" / "index.html").exists()
    assert "folder" not in done.stderr
    assert "Traceback" not in done.stderr
    assert where is None or "standard output could not be written any more" in done.stderr
    faults.cost("standard output full or closed", 0, allowed=0)

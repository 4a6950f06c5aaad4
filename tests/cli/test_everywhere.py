"""What holds of every command: quick help with an example, JSON, standard input, completion."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.progress import Progress

from flopsfit_ds.cli.completion import script
from flopsfit_ds.cli.main import _HOMES, build_app, run
from flopsfit_ds.cli.streams import guarded
from flopsfit_ds.study.console import Console
from helpers.cli_in_process import invoke, run_json

ROWS = "num_params,num_tokens,loss\n" + "".join(
    f"{n:g},{d:g},{1.7 + 400 / n**0.34 + 400 / d**0.28}\n" for n in (1e7, 3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10)
)


class Screen(io.StringIO):
    """A terminal, as far as a program asks."""

    def isatty(self) -> bool:
        return True


def _standard_input(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.parametrize("name", _HOMES)
def test_help_of_every_command_has_an_example_that_begins_with_it(name: str) -> None:
    code, text = invoke(name, "--help")
    assert code == 0
    assert f"flopsfit-ds {name}" in text.split("Example:")[1]
    assert list(getattr(typer.main.get_command(build_app(name)), "commands")).count(name) == 1  # noqa: B009


def test_help_imports_neither_plans_nor_pydantic() -> None:
    code = (
        "import sys; from flopsfit_ds.cli.main import run; run(['--help']); "
        "heavy = ('pydantic', 'yaml', 'flopsfit_ds.plan.sweep_plan', 'flopsfit_ds.records', 'numpy'); "
        "print('LOADED', [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_a_table_or_a_fit_comes_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _standard_input(monkeypatch, ROWS)
    fit = run_json("fit", "-", "--bootstrap-samples", 0, "--json")
    assert len(fit["points"]["rows"]) == 12
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    from_folder = run_json("predict", tmp_path, "--compute", "1e22", "--json")
    _standard_input(monkeypatch, json.dumps(fit))
    assert run_json("predict", "-", "--compute", "1e22", "--json") == from_folder
    lines = "".join(
        json.dumps(dict(zip(("N", "D", "loss"), row.split(","), strict=True))) + "\n" for row in ROWS.splitlines()[1:]
    )
    _standard_input(monkeypatch, lines)
    assert run_json("fit", "-", "--bootstrap-samples", 0, "--json")["law"] == pytest.approx(fit["law"])
    _standard_input(monkeypatch, " ")
    assert invoke("fit", "-") == (2, "error: standard input (-) is empty\n")
    assert invoke("fit", "-", "-")[0] == 2


def test_a_spec_comes_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    _, said = invoke("specs", "--json")
    path = next(each["path"] for each in json.loads(said) if each["name"] == "quickstart")
    _standard_input(monkeypatch, Path(path).read_text())
    named = run_json("plan", "quickstart", "--json")
    assert run_json("plan", "-", "--json")["runs"] == named["runs"]


def test_dry_run_as_json_names_every_run() -> None:
    found = run_json("sweep", "isoflop_8xh100", "--executor", "slurm", "--dry-run", "--json")
    runs = run_json("plan", "isoflop_8xh100", "--json")["runs"]
    assert sorted(label for job in found["jobs"] for label in job["labels"]) == sorted(run["label"] for run in runs)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_command(shell: str) -> None:
    text = script(shell)  # pyright: ignore[reportArgumentType]
    assert all(name in text for name in _HOMES)


def test_bash_completes_commands_options_and_shipped_specs(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    (tmp_path / "completion").write_text(script("bash"))

    def offered(*words: str) -> list[str]:
        line = f"source completion; COMP_WORDS=(flopsfit-ds {' '.join(words)}); COMP_CWORD={len(words)}; _flopsfit_ds; "
        ask = [bash, "--norc", "-c", line + 'printf "%s\\n" "${COMPREPLY[@]}"']
        return subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    assert offered("est") == ["estimate-memory"]
    assert offered("fit", "--target") == ["--target-compute"]
    assert "quickstart" in offered("plan", "quick")


def _on_a_terminal(width: int, *words: object) -> list[str]:
    """Lines that a command writes where both streams are a terminal, without the codes of colours."""
    screen = Screen()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        assert run([str(word) for word in words]) == 0, screen.getvalue()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).splitlines()


def _too_wide(lines: list[str], width: int) -> list[str]:
    """A path, or another word that is wider than the terminal, is left to it."""
    return [line for line in lines if len(line) > width and all(len(word) <= width for word in line.split())]


@pytest.mark.parametrize("width", [40, 79, 80, 200])
def test_help_fits_the_terminal_and_names_each_option_whole(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for name in _HOMES:
        lines = _on_a_terminal(width, name, "--help")
        assert _too_wide(lines, width) == [], name
        (command,) = (getattr(typer.main.get_command(build_app(name)), "commands")[name],)  # noqa: B009
        options = [flag for each in command.params for flag in each.opts if flag.startswith("--")]
        assert [flag for flag in options if flag not in " ".join(lines)] == [], name


def test_what_is_drawn_beside_a_bar_is_no_code_made_visible() -> None:
    screen = Screen()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen), guarded():
        console = Console(force_terminal=True, color_system="standard")
        with Progress(console=console, transient=True) as bars:
            bars.add_task("work", total=2)
            Console(force_terminal=True, color_system="standard").print("[bold]a table[/bold]")
    assert "\x1b[1ma table" in screen.getvalue()
    assert "\\x1b" not in screen.getvalue()


@pytest.mark.parametrize("width", [40, 80, 160, 200])
def test_no_line_is_wider_than_the_terminal(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    (tmp_path / "runs.csv").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    fitted = ("fit", "runs.csv", "--bootstrap-samples", 0, "-o", "fit.json")
    predicted = ("predict", "fit.json", "--compute", "1e22")
    registered = ("register", "fit.json", "--compute", "1e22", "-o", "forecast.json")
    scored = ("score", "forecast.json", "--loss", "2.2")
    chosen = ("next", "runs.csv", "--gpu-hours", "10", "--flops-per-second", "1e14")
    others = [("audit", "runs.csv"), ("compare", "runs.csv", "runs.csv"), ("specs",), ("hardware",)]
    for spec in ("quickstart", "isoflop_8xh100"):
        others += [("plan", spec), ("preview", spec), ("validate", spec)]
    others += [("sweep", "quickstart", "hardware.device=cpu", "--dry-run")]
    others += [("sweep", "isoflop_8xh100", "--executor", "slurm", "--dry-run")]
    others += [("estimate-memory", "isoflop_8xh100", "--quick")]
    for command in (fitted, predicted, registered, scored, chosen, *others):
        lines = _on_a_terminal(width, *command)
        assert lines
        assert _too_wide(lines, width) == [], command


def test_warnings_of_a_kind_are_one_line(tmp_path: Path) -> None:
    losses = {n: 1.7 + 400 / n**0.34 for n in (1e6, 2e6, 4e6, 8e6)}
    budgets = (1e18, 1e19, 1e20)
    rows = [f"{n:g},{c / 6 / n:g},{loss + 1e17 / c},{c:g}" for c in budgets for n, loss in losses.items()]
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(["num_params,num_tokens,loss,compute_budget_flops", *rows]))
    _, said = invoke("fit", table, "--bootstrap-samples", 0)
    told = [line for line in said.splitlines() if line.startswith("warning edge_minimum")]
    assert len(told) == 1
    assert "(and 2 more of this kind" in told[0]

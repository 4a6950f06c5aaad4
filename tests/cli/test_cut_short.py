"""Commands whose reader leaves, or that Ctrl-C meets: the right exit code, no trace, nothing half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from flopsfit_ds.base import storage
from flopsfit_ds.cli.main import run
from helpers.cli_in_process import invoke

ROWS = "num_params,num_tokens,loss\n" + "".join(
    f"{n:g},{d:g},{1.7 + 400 / n**0.34 + 400 / d**0.28}\n" for n in (1e7, 3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10)
)
COMMANDS = [
    ("--help",),
    ("--version",),
    ("plan", "--help"),
    ("plan", "quickstart"),
    ("plan", "quickstart", "--json"),
    ("validate", "quickstart"),
    ("sweep", "isoflop_8xh100", "--dry-run", "--executor", "slurm"),
    ("preview", "quickstart"),
    ("specs",),
    ("schema",),
    ("hardware",),
    ("completion", "bash"),
    ("predict", "fit.json", "--compute", "1e22"),
    ("register", "fit.json", "--compute", "1e22", "-o", "new.json"),
    ("score", "forecast.json", "--loss", "2"),
    ("init", "--yes", "-o", "new.yaml", "--device", "cpu", "--gpus", "1"),
    ("next", "runs.csv", "--gpu-hours", "1", "--flops-per-second", "1e14"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    (folder / "runs.csv").write_text(ROWS)
    assert invoke("fit", folder / "runs.csv", "--bootstrap-samples", 0, "-o", folder / "fit.json")[0] == 0
    assert invoke("register", folder / "fit.json", "--compute", "1e22", "-o", folder / "forecast.json")[0] == 0
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    for name in ("new.json", "new.yaml"):
        (made / name).unlink(missing_ok=True)
    return made


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_that_has_left_ends_a_command_quietly(
    words: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        assert run(words) == 141
    assert capfd.readouterr().err == ""
    assert [path.name for path in here.iterdir() if path.name.endswith(".tmp")] == []


class _Interrupt:
    """Ctrl-C at one call of a function of this package."""

    def __init__(self, at: int | None) -> None:
        self.at, self.calls = at, 0

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call" and f"{os.sep}flopsfit_ds{os.sep}cli{os.sep}" in frame.f_code.co_filename:
            if frame.f_code.co_name in ("run", "<genexpr>") or "streams" in frame.f_code.co_filename:
                return
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt


def _profiled(words: tuple[str, ...], at: int | None) -> tuple[int, int]:
    """The exit code, and how many calls were met."""
    interrupt = _Interrupt(at)
    sys.setprofile(interrupt)
    try:
        code = run(words)
    finally:
        sys.setprofile(None)
    return code, interrupt.calls


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words[0] not in ("--help", "--version", "next")], ids=" ".join
)
def test_ctrl_c_at_any_call_ends_a_command_in_one_line(
    words: tuple[str, ...], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    invoke(*words)  # after which no call belongs to an import
    for name in ("new.json", "new.yaml"):
        (here / name).unlink(missing_ok=True)
    code, calls = _profiled(words, None)
    assert code == 0
    for at in sorted({1, 2, calls // 3, calls // 2, calls - 1, calls} & set(range(1, calls + 1))):
        for name in ("new.json", "new.yaml"):
            (here / name).unlink(missing_ok=True)
        capfd.readouterr()
        assert _profiled(words, at)[0] == 130
        assert capfd.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("words", [words for words in COMMANDS if "-o" in words], ids=" ".join)
def test_ctrl_c_while_a_file_is_written_leaves_none(
    words: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    before = set(here.iterdir())
    monkeypatch.setattr(storage.os, "fsync", interrupted)
    assert invoke(*words)[0] == 130
    assert set(here.iterdir()) == before


def test_the_signal_itself_ends_a_command_that_waits_for_its_input() -> None:
    told = (
        "import sys, types; from flopsfit_ds.cli.main import main\n"
        "def read(): print('ready', flush=True); return sys.__stdin__.buffer.read()\n"
        "sys.stdin = types.SimpleNamespace(buffer=types.SimpleNamespace(read=read)); main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", told, "fit", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, "interrupted\n")

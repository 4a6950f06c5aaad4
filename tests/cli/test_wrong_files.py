"""Whatever a command is given in place of a file: one line that says what it is, and what to give instead."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import yaml

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.cli.main import run
from flopsfit_ds.cli.options import write_text
from flopsfit_ds.spec import load_spec
from helpers.cli_in_process import invoke
from helpers.sweeps import MICRO, write_bytes_corpus

TAKES = {
    "spec": [
        ("plan", "@"),
        ("validate", "@"),
        ("sweep", "@"),
        ("preview", "@"),
        ("data", "prepare", "@"),
        ("estimate-memory", "@", "--quick"),
    ],
    "table": [
        ("fit", "@"),
        ("audit", "@"),
        ("compare", "@", "@"),
        ("laws", "@", "--family", "family"),
        ("report", "@", "-o", "page.html"),
        ("next", "@", "--gpu-hours", "1", "--flops-per-second", "1e14"),
        ("score", "--results", "@"),
    ],
    "fit": [
        ("predict", "@", "--compute", "1e22"),
        ("register", "@", "--compute", "1e22", "-o", "new.json"),
        ("preview", "spec.yaml", "--prior", "@"),
    ],
    "forecast": [("score", "@", "--loss", "2")],
    "sweep": [
        ("status", "@"),
        ("logs", "@", "run"),
        ("curves", "@"),
        ("timeline", "@"),
        ("retry", "@"),
    ],
    "config": [("init", "--from-hf", "@", "--yes", "-o", "new.yaml"), ("estimate-memory", "--hf-config", "@")],
}
FITS = {"fit", "audit", "compare", "report", "next"}
"""Commands of tables that a fit may be given to."""
GIVEN = {
    "folder": "folder",
    "empty file": "empty.json",
    "binary": "binary.csv",
    "zero bytes": "zeros.csv",
    "picture": "picture.png",
    "missing": "missing.csv",
    "below a file": "runs.csv/x",
    "table": "runs.csv",
    "spec": "spec.yaml",
    "fit": "fit.json",
    "forecast": "forecast.json",
    "list": "list.json",
    "other JSON": "other.json",
    "half JSON": "half.json",
    "long name": "x" * 300,
}
CASES = [
    (takes, words, given)
    for takes, commands in TAKES.items()
    for words in commands
    for given in GIVEN
    if given != takes and not (given == "fit" and words[0] in FITS)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "folder").mkdir()
    (folder / "empty.json").touch()
    (folder / "binary.csv").write_bytes(bytes(range(256)))
    (folder / "zeros.csv").write_bytes(bytes(100))
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    (folder / "runs.csv").write_text("num_params,num_tokens,loss\n1e7,1e9,3\n")
    (folder / "spec.yaml").write_text(yaml.safe_dump(MICRO))
    write_bytes_corpus(folder / "corpus.txt")
    (folder / "fit.json").write_text(json.dumps({"format": "flopsfit-ds/fit", "version": 1}, indent=1))
    (folder / "forecast.json").write_text(json.dumps({"format": "flopsfit-ds/forecast", "version": 1}, indent=1))
    (folder / "list.json").write_text("[1, 2]")
    (folder / "other.json").write_text('{"a": 1}')
    (folder / "half.json").write_text('{"a": ')
    return folder


@pytest.mark.parametrize(
    ("takes", "words", "given"), CASES, ids=[f"{' '.join(words[:2])}-{given}" for _, words, given in CASES]
)
def test_what_is_no_such_file_is_answered_in_one_line(
    takes: str,
    words: tuple[str, ...],
    given: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    before = set(files.iterdir())
    torn = (takes, given) == ("forecast", "half JSON")  # may have been a forecast: a damaged record
    assert run([GIVEN[given] if word == "@" else word for word in words]) == (1 if torn else 2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    for jargon in ("Errno", "codec", "Traceback", "Error:", "\\n"):
        assert jargon not in said.err
    assert GIVEN[given][:20] in said.err
    assert set(files.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "runs.csv"), "a table, which fit, audit and report take"),
        (("plan", "fit.json"), "a fit, which predict, register and report take"),
        (("predict", "runs.csv", "--compute", "1e22"), "flopsfit-ds fit DATA -o fit.json"),
        (("fit", "spec.yaml"), "which plan and sweep take"),
        (("laws", "forecast.json", "--family", "x"), "which score takes"),
        (("status", "spec.yaml"), "sweeps lie in outputs/NAME"),
        (("plan", "swept"), "its spec is swept/spec.yaml"),
        (("predict", "swept", "--compute", "1e22"), "flopsfit-ds report swept"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else None,
)
def test_a_file_of_another_kind_is_named_with_what_takes_it(
    words: tuple[str, ...], said: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    swept = files / "swept"
    swept.mkdir(exist_ok=True)
    (swept / "plan.json").write_text("{}")
    (swept / "spec.yaml").write_text(yaml.safe_dump(MICRO))
    code, answer = invoke(*words)
    assert code == 2
    assert said in answer


def test_init_writes_a_spec_of_a_text_that_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bytes_corpus(tmp_path / "corpus.txt", 2_000_000)
    code, said = invoke("init", "--data", "corpus.txt", "--device", "cpu", "--gpus", 1, "--yes")
    assert code == 0, said
    assert "next: " in said
    assert load_spec("spec.yaml").data.source == "text"


def test_init_writes_nothing_where_an_answer_is_no_such_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = invoke("init", "--name", "Not A Name!", "--yes", "--target", "1e13")
    assert code == 2
    assert "name" in said
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_writes_leaves_the_old_file_where_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    write_text(page, "old")
    with pytest.raises(SweepFolderError, match="make its folder first"):
        write_text(tmp_path / "gone" / "page.html", "new")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flopsfit_ds.base.storage.os.fsync", full)
    with pytest.raises(SweepFolderError, match="free space"):
        write_text(page, "new")
    assert page.read_text() == "old"


_ROWS = "num_params,num_tokens,loss\n" + "".join(
    f"{n:g},{d:g},{1.7 + 400 / n**0.34 + 400 / d**0.28}\n" for n in (1e7, 3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10)
)


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "good.csv", "-o", "@"),
        ("report", "good.csv", "-o", "@"),
        ("report", "good.csv", "-o", "page.html", "--figures", "good.csv/@"),
        ("audit", "good.csv", "--html", "@"),
        ("compare", "good.csv", "good.csv", "--figure", "@"),
    ],
    ids=lambda words: " ".join(words[:1] + words[-2:-1]),
)
def test_what_cannot_be_written_is_refused_before_anything_is_fitted(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.csv").write_text(_ROWS)
    (tmp_path / "folder").mkdir()

    def fit(*_: object, **__: object) -> None:
        pytest.fail("it was fitted")

    monkeypatch.setattr("flopsfit_ds.fit.fit_scaling_law", fit)
    monkeypatch.setattr("flopsfit_ds.decide.sources.read_sources", fit)
    for nowhere in ("folder", "nowhere/page.html", "good.csv/page.html"):
        code, said = invoke(*(word.replace("@", nowhere) for word in words))
        assert (code, said.count("\n")) == (2, 1), said
        assert said.startswith("error: ")
        assert "folder" in said


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here that opens and cannot be read")
@pytest.mark.parametrize(
    "words",
    [
        ("plan", "@"),
        ("plan", "quickstart", 'data={source: text, paths: ["HERE/@"], heldout_tokens: 100}'),
        ("fit", "@"),
        ("predict", "@", "--compute", "1e22"),
        ("score", "@", "--loss", "2"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_one_line(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.csv").symlink_to("/proc/self/mem")  # it opens, and reading fails, whoever reads
    code, said = invoke(*(word.replace("@", "broken.csv").replace("HERE", str(tmp_path)) for word in words))
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("error: ")


def test_init_writes_a_spec_of_json_lines_that_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "once upon a time"}\n' * 20_000)
    code, said = invoke("init", "--data", "rows.jsonl", "--device", "cpu", "--yes")
    assert code == 0
    assert "next: flopsfit-ds preview spec.yaml" in said

"""The documentation is true: its code runs, its commands exist, and what it names is there."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

import flopsfit_ds
from flopsfit_ds.cli.main import build_app, run
from flopsfit_ds.spec import parse_spec, spec_json_schema

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "findings/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
FENCE = re.compile(r"(<!-- not run: (?P<why>[^>]+) -->\n+)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    body: str
    why_not: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.body.strip().splitlines()[0][:40]}"


def blocks(language: str) -> Iterator[Block]:
    for page in PAGES:
        for found in FENCE.finditer(page.read_text()):
            block = Block(page, found["language"], found["body"], found["why"])
            if block.language == language and block.why_not is None:
                yield block


def test_every_block_says_what_it_is():
    for page in PAGES:
        assert {found["language"] for found in FENCE.finditer(page.read_text())} <= {
            "bash",
            "python",
            "text",
            "yaml",
        }, page


@pytest.fixture
def in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))


def with_files(block: Block) -> str:
    """The block with the files that it shows."""
    return re.sub(r'^--8<-- "(.+)"$', lambda found: (ROOT / found[1]).read_text(), block.body, flags=re.M)


@pytest.mark.parametrize("block", list(blocks("python")), ids=str)
@pytest.mark.usefixtures("in_the_clone")
def test_python_runs(block: Block):
    exec(compile(with_files(block), str(block), "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("block", list(blocks("yaml")), ids=str)
def test_yaml_is_a_valid_spec(block: Block):
    assert parse_spec(with_files(block)).design


@pytest.mark.parametrize("block", list(blocks("bash")), ids=str)
@pytest.mark.usefixtures("in_the_clone")
def test_commands_are_those_that_there_are(block: Block, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec = next((other for other in blocks("yaml") if other.page == block.page), None)
    if spec is not None:
        (tmp_path / "spec.yaml").write_text(spec.body)
    lines = [line for line in block.body.splitlines() if line.split("#")[0].strip()]
    assert lines
    for line in lines:
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
        check_command(words, tmp_path, capsys)


def check_command(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    match words:
        case ["flopsfit-ds", "plan" | "preview" as name, "spec.yaml"]:
            absent = ["data.num_tokens=100B"] if "path: " in (folder / "spec.yaml").read_text() else []
            assert run([name, str(folder / "spec.yaml"), *absent]) == 0, words
            assert "FLOPs" in capsys.readouterr().out
        case ["flopsfit-ds", name, *rest]:
            subcommand = typer.main.get_command(build_app()).commands[name]  # pyright: ignore[reportAttributeAccessIssue]
            known = {option for parameter in subcommand.params for option in parameter.opts}
            assert {word for word in rest if word.startswith("--")} <= known, words
        case ["python", script, *place] if script.startswith("examples/"):
            with pytest.MonkeyPatch.context() as patch:  # a page names a folder of its reader's
                patch.setattr(sys, "argv", [script, *(str(folder / "example") for _ in place)])
                runpy.run_path(script, run_name="__main__")
            assert capsys.readouterr().out.strip(), f"{script} shows nothing"
        case ["bash", script, *_] | ["python", script, *_] if script[0] != "-":
            assert (ROOT / script).is_file(), words
        case ["python", "-m", "pytest", *paths]:
            assert all((ROOT / path).exists() for path in paths), words
        case ["pip", "install", "-e", target]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(target.removeprefix(".").strip("[]").split(",")) - {""} <= set(extras), words
        case ["mkdocs", "build", "--strict"]:
            assert "mkdocs build --strict\n" in (ROOT / ".ci/run").read_text()  # with --quiet it would refuse nothing
        case _:
            pytest.fail(f"{' '.join(words)}: no test runs this; write above its block why not")


def test_modules_that_the_pages_name_exist():
    for page in PAGES:
        for name in re.findall(r"`(flopsfit_ds(?:\.\w+)+)`", page.read_text()):
            parent, _, last = name.rpartition(".")
            there = importlib.util.find_spec(parent) and importlib.util.find_spec(name)
            assert there or hasattr(importlib.import_module(parent), last), f"{page.name} names {name}"


def test_files_that_the_pages_name_exist():
    for page in PAGES:
        for path in re.findall(r"`(?:bash |python )?((?:tests|examples|scripts|findings)/[\w./]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_every_finding_is_on_the_page_of_traps_and_every_trap_has_its_script():
    named = set(re.findall(r"\(`(\w+)`\)", (ROOT / "docs/traps.md").read_text()))
    assert named == {script.stem for script in (ROOT / "findings").glob("*.sh")}


@pytest.mark.parametrize("script", sorted((ROOT / "findings").glob("*.sh")), ids=lambda path: path.stem)
def test_a_finding_states_versions_expectation_and_output_and_does_without_this_project(script: Path):
    text = script.read_text()
    head, _, body = text.partition("set -euo pipefail")
    assert all(f"# {word}:" in head for word in ("Versions", "Expected", "Seen", "Output"))
    assert head.partition("# Output:\n")[2].strip().startswith("#   ")
    assert re.search(r"pip\" install .*==", body)
    assert "flopsfit" not in text


@pytest.fixture(scope="module")
def pages() -> dict[str, object]:
    return runpy.run_path(str(ROOT / "scripts/docs_pages.py"))


def test_the_api_reference_is_complete(pages):
    shown = {}
    for package, name, path in pages["public_names"]():
        module, _, attribute = path.rpartition(".")
        assert getattr(importlib.import_module(module), attribute) is getattr(importlib.import_module(package), name)
        assert f"::: {path}\n" in pages["api_page"]()
        shown.setdefault(package, set()).add(name)
    packages = [flopsfit_ds.__name__]
    packages += [f"flopsfit_ds.{found.name}" for found in pkgutil.iter_modules(flopsfit_ds.__path__) if found.ispkg]
    for package in packages:
        exported = set(getattr(importlib.import_module(package), "__all__", ())) - {"__version__"}
        assert exported == shown.get(package, set()), package


def test_the_spec_reference_has_every_field_and_its_meaning(pages):
    page = pages["spec_page"]()
    for title, section in spec_json_schema()["$defs"].items():
        text = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        for field, value in section.get("properties", {}).items():
            assert f"| `{field}` |" in text, f"{title}.{field}"
            assert " ".join(value.get("description", "").split()).replace("|", "\\|") in text

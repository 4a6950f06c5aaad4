"""What may import what: planning loads nothing heavy, and layers go down only."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "deepspeed", "accelerate", "transformers", "numpy", "scipy")
PRINT_HEAVY = f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"


def loaded_by(code: str, cwd: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{PRINT_HEAVY}"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return next(line for line in result.stdout.splitlines() if line.startswith("LOADED"))


@pytest.mark.parametrize(
    "module",
    [
        *("base.hardware", "data.corpus", "memory", "model.architecture", "plan.ds_config", "plan.sweep_plan"),
        *("records", "spec", "study.steps"),
    ],
)
def test_planning_loads_nothing_heavy(module, tmp_path):
    assert loaded_by(f"import flopsfit_ds.{module}", tmp_path) == "LOADED []"


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["plan", "quickstart"],
        ["plan", "isoflop_8xh100", "--json"],
        ["estimate-memory", "isoflop_8xh100", "--quick"],
        ["schema"],
        ["specs"],
    ],
    ids=" ".join,
)
def test_a_planning_command_loads_nothing_heavy(command, tmp_path):
    code = f"from flopsfit_ds.cli.main import run\nassert run({command!r}) == 0"
    assert loaded_by(code, tmp_path) == "LOADED []"


def test_layers_go_down_only():
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("import-linter is not installed")
    result = subprocess.run(
        [program, "--config", str(PROJECT / "pyproject.toml"), "--no-cache"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_every_package_is_shipped_in_a_wheel():
    folders = {path.parent for path in (PROJECT / "flopsfit_ds").rglob("__init__.py")}
    found = {".".join(folder.relative_to(PROJECT).parts) for folder in folders}
    declared = re.search(r"^packages = \[(.*?)\]", (PROJECT / "pyproject.toml").read_text(), re.M | re.S)
    assert declared is not None
    assert {*re.findall(r'"(.+?)"', declared[1])} == {*found, "flopsfit_ds.ds_configs"}


def test_no_folder_holds_more_than_ten_files():
    for folder in {path.parent for path in (PROJECT / "flopsfit_ds").rglob("*.py")}:
        assert len([path for path in folder.iterdir() if path.is_file()]) <= 10, folder

"""What the package imports is what it declares, and what a type checker and an index need is in it."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parents[1]
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS = METADATA["optional-dependencies"]
DISTRIBUTIONS = {"yaml": "pyyaml", "google": "protobuf", "mlflow": "mlflow"}
"""Imports whose distribution has another name, where it may not be installed to be asked, or several bring it."""
OPTIONAL = ("slurm", "parquet", "ray", "tensorboard", "trackers", "eightbit")
"""Extras of what the package imports where somebody asks for it."""


def names(requirements: list[str]) -> set[str]:
    """Distributions that are required, without their versions and without this package's own extras."""
    found = {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-") for requirement in requirements}
    return found - {"flopsfit-ds"}


def imported_by(*folders: str) -> set[str]:
    """Distributions of all modules that are imported anywhere in these folders, but for Python's and their own."""
    modules = set()
    for path in (path for folder in folders for path in (PROJECT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules.add(node.module.partition(".")[0])
    scripts = (folder for folder in folders if folder != "flopsfit_ds")  # whose modules have their package's name first
    own = {"flopsfit_ds", "helpers", *(path.stem for folder in scripts for path in (PROJECT / folder).rglob("*.py"))}
    known = packages_distributions()
    others = modules - own - set(sys.stdlib_module_names) - {"tomllib"}  # which Python has from 3.11 on
    return {DISTRIBUTIONS.get(module, known.get(module, [module])[0]).lower().replace("_", "-") for module in others}


def test_what_the_package_imports_is_declared_and_what_is_declared_is_imported():
    extras = {name for extra in OPTIONAL for name in names(EXTRAS[extra])}
    assert imported_by("flopsfit_ds") == names(METADATA["dependencies"]) | extras


@pytest.mark.parametrize("extra", OPTIONAL)
def test_what_only_an_extra_brings_is_imported_where_it_is_used_and_not_when_the_package_is_loaded(extra):
    brought = names(EXTRAS[extra])
    for path in (PROJECT / "flopsfit_ds").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:  # of the module itself, not of a function
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not brought & {name.partition(".")[0] for name in imported}, path


def test_tests_import_what_the_extra_of_that_name_brings():
    allowed = names(METADATA["dependencies"]) | {name for extra in OPTIONAL for name in names(EXTRAS[extra])}
    needed = imported_by("tests") - allowed
    assert needed <= names(EXTRAS["test"])
    assert names(EXTRAS["test"]) - needed <= {"pytest-timeout", "pytest-xdist"}, "plugins, which nobody imports"


def test_every_python_that_is_promised_is_run_in_continuous_integration():
    classified = {line.rpartition(" ")[2] for line in METADATA["classifiers"] if re.search(r"Python :: 3\.\d+$", line)}
    run = set(re.findall(r'"(3\.\d+)"', (PROJECT / ".github" / "workflows" / "ci.yml").read_text()))
    assert run <= classified
    lowest, highest = (sorted(classified, key=lambda name: int(name[2:]))[end] for end in (0, -1))
    assert METADATA["requires-python"] == f">={lowest}"
    assert {lowest, highest} <= run


def test_types_are_shipped():
    assert (PROJECT / "flopsfit_ds" / "py.typed").is_file()


def test_every_file_of_the_package_is_in_what_is_installed():
    told = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for path in (PROJECT / "flopsfit_ds").rglob("*"):
        if not path.is_file() or "__pycache__" in path.parts:
            continue
        package = ".".join(path.parent.relative_to(PROJECT).parts)
        assert package in told["packages"], path
        if path.suffix != ".py":
            assert any(path.match(pattern) for pattern in told["package-data"].get(package, ())), path

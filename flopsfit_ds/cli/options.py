"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopsfit_ds.base.errors import FitError, SweepFolderError
from flopsfit_ds.base.presets import shipped_specs
from flopsfit_ds.base.units import parse_quantity

if TYPE_CHECKING:
    from flopsfit_ds.plan.sweep_plan import SweepPlan

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A spec.yaml, or the name of a shipped spec such as `quickstart`.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values that override the spec's."),
]
AllowImport = Annotated[
    list[str] | None,
    typer.Option("--allow-import", metavar="PACKAGE", help="Allow the spec to import classes of this package."),
]
SweepFolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A sweep's folder, such as outputs/quickstart.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def quantity(text: str, flag: str) -> float:
    """A number of FLOPs, tokens or parameters that an option holds, such as `1e24` or `70B`.

    Raises:
        FitError: It is none.
    """
    try:
        return parse_quantity(text)
    except ValueError as error:
        raise FitError(f"{flag}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write what an option asks for to a file.

    Raises:
        FitError: It cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FitError(f"cannot write {path}: {error.strerror or error}") from error


def spec_path(argument: str) -> Path:
    """The file an argument names: a path, or a shipped spec by name where there is none, or a folder."""
    path = Path(argument)
    if (path.is_dir() or not path.exists()) and argument in shipped_specs():
        return shipped_specs()[argument]
    return path


def require_sweep(folder: Path) -> None:
    """Go on only where a folder is a sweep's.

    Raises:
        SweepFolderError: It has no plan.
    """
    if not (folder / "plan.json").exists():
        raise SweepFolderError(f"{folder}: no sweep's folder: it has no plan.json")


def plan_from(argument: str, overrides: list[str] | None, allow_import: list[str] | None) -> SweepPlan:
    """Load and plan a spec.

    Raises:
        SpecError: The spec is not valid.
        PlanError: No plan meets it.
        DataError: Its data cannot be used.
    """
    from flopsfit_ds.spec import load_spec
    from flopsfit_ds.study.steps import build_plan

    path = spec_path(argument)
    return build_plan(load_spec(path, overrides or ()), spec_folder=path.parent, allow_import=tuple(allow_import or ()))


def tuning_from(argument: str, overrides: list[str] | None, allow_import: list[str] | None) -> SweepPlan | None:
    """The plan of the short sweep that comes before a spec's own; None where none does.

    Raises:
        SpecError: As `plan_from`.
        PlanError: As `plan_from`.
        DataError: As `plan_from`.
    """
    from flopsfit_ds.spec import load_spec
    from flopsfit_ds.study.steps import tuning_plan

    path = spec_path(argument)
    spec = load_spec(path, overrides or ())
    return tuning_plan(spec, spec_folder=path.parent, allow_import=tuple(allow_import or ()))

"""Arguments that several commands share."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from flopsfit_ds.base.errors import PREPARE, DataError, FitError, SweepFolderError
from flopsfit_ds.base.presets import shipped_specs
from flopsfit_ds.base.storage import KIND_WORDS, atomic_write, kind_of
from flopsfit_ds.base.units import parse_quantity

if TYPE_CHECKING:
    from flopsfit_ds.plan.recorded.chosen import Choices
    from flopsfit_ds.plan.sweep_plan import SweepPlan
    from flopsfit_ds.spec import SweepSpec

_TELL_EVERY_SECONDS = 5.0  # often enough to see that it goes on; a plan of a dozen models takes a minute

SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", help="A spec.yaml, the name of a shipped spec such as `quickstart`, or - for standard input."
    ),
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
ExecutorChoice = Literal["auto", "local", "launched", "slurm", "ray"]
ExecutorOption = Annotated[
    ExecutorChoice,
    typer.Option(
        metavar="WAY",
        help="auto takes the launcher's ranks where there is one, else this machine; or local, launched, slurm or ray.",
    ),
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


def require_writable(*paths: Path | None) -> None:
    """Go on only where files can be written, so that nobody waits for what is then lost.

    Args:
        paths: What options name; None where one was not given.

    Raises:
        FitError: One is a folder, or lies in none.
    """
    for path in (each for each in paths if each is not None):
        if path.is_dir():
            raise FitError(f"cannot write {path}: it is a folder; name a file")
        if not path.parent.is_dir():
            what = "is a file" if path.parent.exists() else "does not exist; make it first"
            raise FitError(f"cannot write {path}: its folder {path.parent} {what}")


def write_text(path: Path, text: str) -> None:
    """Write what an option asks for to a file, whole or not at all.

    Raises:
        SweepFolderError: It cannot be written.
        FitError: So, where it is no plain file.
    """
    if _is_replaceable(path):
        atomic_write(path, text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FitError(f"cannot write {path}: {error.strerror or error}") from error


def _is_replaceable(path: Path) -> bool:
    """Not a device, a pipe, a link, or a file in a folder that takes no new one: these are written in place."""
    if not path.exists():
        return not path.is_symlink()
    return path.is_file() and not path.is_symlink() and os.access(path.parent, os.W_OK)


def spec_path(argument: str) -> Path:
    """The file an argument names: a path, or a shipped spec by name where there is none, or a folder."""
    path = Path(argument)
    if (path.is_dir() or not path.exists()) and argument in shipped_specs():
        return shipped_specs()[argument]
    return path


def print_json(content: Any) -> None:
    """Print what `--json` asks for: plain data, on one line."""
    print(json.dumps(content, allow_nan=False))


@contextlib.contextmanager
def given_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The files that arguments name, `-` among them: what standard input holds, kept in a file meanwhile.

    Its name ends as the content asks: Parquet, a fit, JSON lines, else CSV.

    Raises:
        DataError: Standard input is empty, or is named twice.
    """
    if not any(str(path) == "-" for path in paths):
        yield list(paths)
        return
    if sum(str(path) == "-" for path in paths) > 1:
        raise DataError("- names standard input, which can be read only once")
    content = sys.stdin.buffer.read()
    if not content.strip():
        raise DataError("standard input (-) is empty")
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / f"standard-input{_ending(content)}"
        held.write_bytes(content)
        yield [held if str(path) == "-" else path for path in paths]


def _ending(content: bytes) -> str:
    if content.startswith(b"PAR1"):
        return ".parquet"
    if not content.lstrip().startswith((b"{", b"[")):
        return ".csv"
    try:
        whole = json.loads(content)
    except ValueError:
        return ".jsonl"
    is_row = isinstance(whole, dict) and not {"format", "content"} & set(whole)
    return ".jsonl" if is_row else ".json"


def fit_file(path: Path) -> Path:
    """The fit that an argument names: a file, or the fit.json of a sweep's folder.

    Raises:
        FitError: The folder holds none.
    """
    if not path.is_dir():
        return path
    if not (path / "fit.json").exists():
        raise FitError(f"{path}: holds no fit.json; `flopsfit-ds report {path}` writes it where its runs allow a fit")
    return path / "fit.json"


def require_sweep(folder: Path) -> None:
    """Go on only where a folder is a sweep's.

    Raises:
        SweepFolderError: It has no plan.
    """
    if (folder / "plan.json").exists():
        return
    kind = kind_of(folder)
    if kind == "folder":
        found = "it has no plan.json"
    elif kind is not None:
        found = f"it is {KIND_WORDS[kind]}"
    else:
        found = "it is a file" if folder.exists() else "there is none"
    raise SweepFolderError(f"{folder}: no sweep's folder: {found}; sweeps lie in outputs/NAME")


class _Teller:
    """Lines on standard error about what takes time: the first at once, then one now and then."""

    def __init__(self) -> None:
        self._last: float | None = None

    def __call__(self, said: str) -> None:
        now = time.monotonic()
        if self._last is None or now - self._last >= _TELL_EVERY_SECONDS:
            self._last = now
            print(said, file=sys.stderr, flush=True)


def plan_from(
    argument: str,
    overrides: list[str] | None,
    allow_import: list[str] | None,
    choices: Choices | None = None,
) -> SweepPlan:
    """Load and plan a spec; see `study.steps.build_plan`.

    Raises:
        SpecError: The spec is not valid.
        PlanError: No plan meets it.
        DataError: Its data cannot be used.
    """
    from flopsfit_ds.study.steps import build_plan

    spec, folder = read_spec(argument, overrides)
    allowed = tuple(allow_import or ())
    try:
        return build_plan(spec, spec_folder=folder, allow_import=allowed, choices=choices, tell=_Teller())
    except DataError as error:
        if PREPARE not in str(error):
            raise
        raise DataError(str(error).replace(PREPARE, f"{PREPARE[:-4]}{_as_typed(argument, overrides)}")) from None


def _as_typed(argument: str, overrides: list[str] | None) -> str:
    """A spec and what overrides it, as a shell takes it."""
    return shlex.join([argument, *(overrides or ())])


def tuning_from(argument: str, overrides: list[str] | None, allow_import: list[str] | None) -> SweepPlan | None:
    """The plan of the short sweep that comes before a spec's own; None where none does.

    Raises:
        SpecError: As `plan_from`.
        PlanError: As `plan_from`.
        DataError: As `plan_from`.
    """
    from flopsfit_ds.study.steps import tuning_plan

    spec, folder = read_spec(argument, overrides)
    return tuning_plan(spec, spec_folder=folder, allow_import=tuple(allow_import or ()))


def read_spec(argument: str, overrides: list[str] | None) -> tuple[SweepSpec, Path]:
    """The spec that an argument names, and the folder that its relative paths start from."""
    from flopsfit_ds.spec import load_spec, parse_spec

    if argument == "-":
        return parse_spec(_text_of(sys.stdin), overrides or (), name="standard input"), Path()
    path = spec_path(argument)
    return load_spec(path, overrides or ()), path.parent


@functools.cache
def _text_of(stream: TextIO) -> str:
    """What a stream holds, which can be read only once."""
    return stream.buffer.read().decode("utf-8", errors="replace")

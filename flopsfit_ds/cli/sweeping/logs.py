"""`logs` and `curves`: what a run's workers wrote, and how its loss fell."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopsfit_ds.base.errors import SweepFolderError
from flopsfit_ds.base.text import printable
from flopsfit_ds.cli.options import SweepFolderArgument, require_sweep

if TYPE_CHECKING:
    from flopsfit_ds.engine.disk.watch import RunState
    from flopsfit_ds.records import SweepFolder

_LOOK_SECONDS = 0.5
"""Between two looks at a log that grows, as people see no delay in it."""
_NEAREST = 5
"""Runs that a message names: they fit on its line."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def logs(  # pyright: ignore[reportUnusedFunction]
        folder: SweepFolderArgument,
        run: Annotated[
            str | None, typer.Argument(metavar="RUN", help="A run's id or label, or how one of them begins.")
        ] = None,
        rank: Annotated[int, typer.Option(min=0, help="Whose log.")] = 0,
        attempt: Annotated[int | None, typer.Option(min=1, help="Which try; the newest without it.")] = None,
        follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on while the run does.")] = False,
    ) -> None:
        """Print what a rank of a run wrote: its log, with stacks and errors.

        Example: flopsfit-ds logs outputs/quickstart 1e11-n4.84k --follow
        """
        from flopsfit_ds.engine.disk.watch import look_at
        from flopsfit_ds.records import SweepFolder

        require_sweep(folder)
        sweep = SweepFolder(folder)
        runs = look_at(sweep).runs
        if run is None:
            raise SweepFolderError(_which(folder, runs))
        (found,) = choose_runs(runs, [run], single=True)
        path = log_path(sweep, found, rank, attempt)
        shown = _print_from(path, 0)
        while follow and next(each for each in look_at(sweep).runs if each.run_id == found.run_id).state == "running":
            time.sleep(_LOOK_SECONDS)
            shown = _print_from(path, shown)
        if not _print_from(path, shown):
            print(f"{path} is empty: the rank has said nothing", file=sys.stderr)


def _which(folder: Path, runs: Sequence[RunState]) -> str:
    """What to write, by runs that somebody may want to see: those that run, else that failed, else that are done."""
    from flopsfit_ds.engine.disk.watch import ENDED

    for words, states in (("run now", ("running",)), ("failed", ("failed", "oom", "stopped")), ("ended", ENDED)):
        labels = [run.label for run in runs if run.state in states]
        if labels:
            said = ", ".join(labels[:_NEAREST]) + (", ..." if len(labels) > _NEAREST else "")
            return f"which run? {len(labels)} {words}: {said}; write flopsfit-ds logs {folder} {labels[0]}"
    return f"no run of {folder} has begun, so there is no log yet"


def choose_runs(runs: Sequence[RunState], names: Sequence[str], *, single: bool = False) -> list[RunState]:
    """The runs that names mean: an id, a label, or the beginning of either; all of them without a name.

    Args:
        runs: Of the sweep.
        names: What the user wrote.
        single: Each name must mean one run.

    Raises:
        SweepFolderError: A name means none, or several where it must mean one.
    """
    chosen: dict[str, RunState] = {} if names else {run.run_id: run for run in runs}
    for name in names:
        exact = [run for run in runs if name in (run.run_id, run.label)]
        found = exact or [run for run in runs if run.run_id.startswith(name) or run.label.startswith(name)]
        if not found:
            labels = ", ".join(run.label for run in runs[:_NEAREST])
            raise SweepFolderError(
                f"no run's id or label begins with {name!r}; there are {len(runs)}, such as {labels}"
            )
        if single and len(found) > 1:
            ids = ", ".join(f"{run.run_id} ({run.label})" for run in found[:_NEAREST])
            raise SweepFolderError(f"{name!r} means {len(found)} runs: {ids}; write more of it, or the id")
        chosen |= {run.run_id: run for run in found}
    return list(chosen.values())


def log_path(sweep: SweepFolder, run: RunState, rank: int, attempt: int | None) -> Path:
    """The log of a rank.

    Raises:
        SweepFolderError: The run has none yet, or not of this rank and attempt.
    """

    folder = sweep.run(run.run_id)
    numbers = folder.attempt_numbers()
    if not numbers:
        raise SweepFolderError(f"{run.label}: no attempt has begun, so there is no log yet")
    path = folder.attempt(numbers[-1] if attempt is None else attempt) / f"log.{rank}.txt"
    if not path.exists():
        ranks = sorted(each.name.split(".")[1] for each in path.parent.glob("log.*.txt"))
        raise SweepFolderError(
            f"{path}: there is none; attempts of {run.label}: {', '.join(map(str, numbers))}"
            + (f", ranks of this one: {', '.join(ranks)}" if ranks else "")
        )
    return path


def _print_from(path: Path, start: int) -> int:
    """Print a file from a place on, control characters made visible; where it ended."""
    with path.open("rb") as stream:
        stream.seek(start)
        content = stream.read()
    sys.stdout.write(printable(content.decode(errors="replace")))
    sys.stdout.flush()
    return start + len(content)

"""`data prepare`: the ids of a spec's data, before anything is trained on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from flopsfit_ds.base.units import format_bytes, format_seconds
from flopsfit_ds.cli.options import AllowImport, Overrides, SpecArgument, plan_from
from flopsfit_ds.cli.prose import say

_LINE_EVERY_SECONDS = 15.0  # in a log that nobody rewrites: four lines a minute


def register(app: typer.Typer) -> None:
    """Add the commands."""
    data = typer.Typer(no_args_is_help=True)
    app.add_typer(
        data,
        name="data",
        help="Make the data of a spec ready.\n\nExample: flopsfit-ds data prepare spec.yaml",
        short_help="Make the data of a spec ready: `data prepare SPEC` tokenises it.",
    )

    @data.callback()
    def group() -> None:  # pyright: ignore[reportUnusedFunction]
        pass

    @data.command()
    def prepare(  # pyright: ignore[reportUnusedFunction]
        spec: SpecArgument,
        overrides: Overrides = None,
        allow_import: AllowImport = None,
        workers: Annotated[
            int | None, typer.Option(min=1, help="Processes that tokenise; without it, one for each core.")
        ] = None,
    ) -> None:
        """Tokenise the data of a spec into the file that its sweep reads; after a kill, the same command goes on.

        Example: flopsfit-ds data prepare spec.yaml --workers 8
        """
        from flopsfit_ds.study.preparing import prepare_data

        plan = plan_from(spec, overrides, allow_import)
        for note in plan.corpus.notes:
            say(f"data: {note}")
        began = time.monotonic()
        with _shown() as tell:
            manifests = prepare_data(plan, workers=workers, progress=tell)
        for manifest in manifests:
            documents = "" if manifest.num_documents is None else f" of {manifest.num_documents:,} documents"
            say(f"{manifest.path}: {manifest.num_tokens:,} ids of {manifest.dtype}{documents}")
        say(f"ready after {format_seconds(time.monotonic() - began)}")


@contextmanager
def _shown() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from flopsfit_ds.study.console import Console

    console = Console()
    columns = (BarColumn(bar_width=32), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task, last, begun = bars.add_task("", total=None), time.monotonic(), False

        def tell(done: int, total: int) -> None:
            nonlocal last, begun
            if not begun and 0 < done < total:
                console.print(f"{format_bytes(done)} of {format_bytes(total)} were tokenised before", highlight=False)
            begun = True
            bars.update(task, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - last >= _LINE_EVERY_SECONDS:
                last = time.monotonic()
                console.print(f"{format_bytes(done)} of {format_bytes(total)}", highlight=False)

        yield tell

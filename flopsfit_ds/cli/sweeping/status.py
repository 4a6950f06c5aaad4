"""`status`: where a sweep stands, from its files alone: from a second terminal, or from another machine."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopsfit_ds.base.units import format_bytes, format_count, format_seconds
from flopsfit_ds.cli.options import AsJson, SweepFolderArgument, require_sweep

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from flopsfit_ds.engine.disk.watch import RunState, SweepState

_WIDE = 100
"""Columns from which on all cells of a run fit beside its label."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def status(  # pyright: ignore[reportUnusedFunction]
        folder: SweepFolderArgument,
        watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
        interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks with --watch.")] = 2.0,
        every: Annotated[bool, typer.Option("--all", help="List all runs, not only those that run or failed.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Show what a sweep has done, does and has left, from its files, while it runs or after.

        Example: flopsfit-ds status outputs/quickstart --watch
        """
        from rich.live import Live

        from flopsfit_ds.engine.disk.watch import look_at
        from flopsfit_ds.records import SweepFolder
        from flopsfit_ds.study.console import Console

        require_sweep(folder)
        sweep, console = SweepFolder(folder), Console()
        state = look_at(sweep)
        if as_json:
            print(json.dumps(status_json(state), indent=1))
        elif not watch or not console.is_terminal:
            console.print(draw_status(state, console.width, every=every))
        else:
            with Live(draw_status(state, console.width, every=every), console=console, auto_refresh=False) as live:
                while state.driving or state.count("running"):
                    time.sleep(interval)
                    state = look_at(sweep)
                    live.update(draw_status(state, console.width, every=every), refresh=True)


def status_json(state: SweepState) -> dict[str, Any]:
    """What `status --json` prints: the sweep's and each run's state, in bytes, seconds and tokens a second."""
    whole = {**asdict(state), "folder": str(state.folder), "share_done": state.share_done}
    return {**whole, "seconds_left": state.seconds_left}


def draw_status(state: SweepState, width: int, *, every: bool = False) -> RenderableType:
    """A few lines on the whole, and a table of the runs that run, were stopped or did not complete.

    Args:
        state: The sweep.
        width: Columns of the terminal.
        every: List runs that completed or wait as well.
    """
    from rich.console import Group
    from rich.text import Text

    from flopsfit_ds.records.record import AGAINST_WAITING, WAITED_MUCH

    lines = [Text(line) for line in _whole(state)]
    waiting = [run for run in state.runs if (run.waited_share or 0.0) > WAITED_MUCH]
    if waiting:
        worst = max(waiting, key=lambda run: run.waited_share or 0.0)
        lines.append(
            Text(f"{worst.label} waits for samples for {worst.waited_share:.0%} of its time: {AGAINST_WAITING}")
        )
    shown = [run for run in state.runs if every or run.state not in ("completed", "waiting")]
    if not shown:
        return Group(*lines)
    reasons = [Text(f"{run.label}: {run.reason}") for run in shown if run.reason]
    return Group(*lines, _table(shown, width), *reasons)


def _whole(state: SweepState) -> list[str]:
    done = state.count("completed")
    parts = [f"{done} of {len(state.runs)} runs done"]
    parts += [f"{number} {name}" for name in ("running", "stopped", "waiting") if (number := state.count(name))]
    parts += [f"{number} {name}" for name in ("failed", "oom", "diverged") if (number := state.count(name))]
    lines = [f"{state.name}: {', '.join(parts)}; {state.share_done:.0%} of the FLOPs"]
    if state.driver is None:
        lines.append("no driver has begun; start it with: flopsfit-ds sweep SPEC")
        return lines
    busy = sum(len(run.slots) for run in state.runs if run.state == "running")
    where = f", {busy} of {state.num_slots} slots busy" if state.num_slots else ""
    if state.driving:
        left = state.seconds_left
        lines.append(
            f"driven by {state.driver}{where}" + ("" if left is None else f"; about {format_seconds(left)} left")
        )
    elif state.count("running", "stopped", "waiting"):
        lines.append(f"nobody drives it (last: {state.driver}); run the sweep's command again and it goes on")
    else:
        lines.append("nothing is left to train")
    if state.sessions > 1:
        lines.append(f"a driver has begun {state.sessions} times")
    return lines


def _table(runs: list[RunState], width: int) -> Table:
    from rich import box
    from rich.table import Table

    wide = width >= _WIDE
    names = ["run", "state", "step", "loss", "left"]
    names += ["tokens/s", "MFU", "memory", "slots"] if wide else []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    for name in names:
        words = name in ("run", "state")
        table.add_column(name, overflow="fold", justify="left" if words else "right", no_wrap=not words)
    for run in runs:
        table.add_row(*_cells(run)[: len(names)])
    return table


def _cells(run: RunState) -> list[Any]:
    from rich.text import Text

    speed = "-" if run.tokens_per_second is None else format_count(run.tokens_per_second)
    used = "-" if run.model_flops_utilisation is None else f"{run.model_flops_utilisation:.1%}"
    memory = format_bytes(run.predicted_memory_bytes)
    if run.peak_memory_bytes is not None:
        memory = f"{format_bytes(run.peak_memory_bytes)} of {memory}"
    return [
        Text(run.label),
        run.state,
        f"{run.step}/{run.num_steps}",
        "-" if run.loss is None else f"{run.loss:.4f}",
        "-" if run.seconds_left is None else format_seconds(run.seconds_left),
        speed,
        used,
        memory,
        " ".join(run.slots) or "-",
    ]

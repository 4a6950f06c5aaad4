"""`timeline`: which slot ran what when, as text, from a sweep's events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from flopsfit_ds.base.units import format_seconds
from flopsfit_ds.cli.options import SweepFolderArgument, require_sweep

_NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_IDLE, _FAILED = ".", "x"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def timeline(  # pyright: ignore[reportUnusedFunction]
        folder: SweepFolderArgument,
        width: Annotated[int, typer.Option(min=20, max=400, help="Characters of the time axis.")] = 80,
    ) -> None:
        """Show which slot ran what when, from a sweep's events."""
        from flopsfit_ds.records import SweepFolder

        require_sweep(folder)
        print(draw_timeline(SweepFolder(folder).events.read(), width))


def draw_timeline(events: Sequence[dict[str, Any]], width: int) -> str:
    """One line a slot, a letter a run; `x` ends an attempt that did not complete, `.` is idle.

    Args:
        events: Lines of `events.jsonl`.
        width: Characters of the time axis.
    """
    ends = [event for event in events if event["event"] == "end" and event["slots"]]
    if not ends:
        return "no attempt has ended on a slot"
    first = min(event["time"] - event["seconds"] for event in ends)
    span = max(event["time"] for event in ends) - first or 1.0
    labels = {event["run_id"]: event["label"] for event in events if event["event"] == "start"}
    names = {run_id: _NAMES[number % len(_NAMES)] for number, run_id in enumerate(labels)}
    rows: dict[str, list[str]] = {slot: [_IDLE] * width for event in ends for slot in event["slots"]}
    busy = 0.0
    for event in ends:
        left = int((event["time"] - event["seconds"] - first) / span * (width - 1))
        right = max(left + 1, int((event["time"] - first) / span * (width - 1)) + 1)
        busy += event["seconds"] * len(event["slots"])
        for slot in event["slots"]:
            rows[slot][left:right] = [names[event["run_id"]]] * (right - left)
            if event["outcome"] not in ("completed", "diverged"):
                rows[slot][right - 1] = _FAILED
    margin = max(len(slot) for slot in rows)
    lines = [f"{slot:>{margin}} |{''.join(row)}|" for slot, row in sorted(rows.items())]
    lines.append(f"{'':>{margin}}  {format_seconds(span)}, {busy / span / len(rows):.1%} of {len(rows)} slots busy")
    lines += [f"{'':>{margin}}  {names[run_id]} {label}" for run_id, label in labels.items()]
    return "\n".join(lines)

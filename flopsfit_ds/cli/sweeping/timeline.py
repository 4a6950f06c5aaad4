"""`timeline`: which slot ran what when, as text, while a sweep runs or after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flopsfit_ds.base.units import format_seconds
from flopsfit_ds.cli.options import AsJson, SweepFolderArgument, require_sweep
from flopsfit_ds.cli.prose import terminal_width

if TYPE_CHECKING:
    from flopsfit_ds.engine.disk.watch import Span

_NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_WIDTH, _NARROWEST = 80, 20
"""Characters of the time axis where there is no terminal, and at least."""
_IDLE, _FAILED, _GOES_ON = ".", "x", ">"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def timeline(  # pyright: ignore[reportUnusedFunction]
        folder: SweepFolderArgument,
        width: Annotated[
            int | None,
            typer.Option(min=20, max=400, help="Characters of the time axis; those of the terminal without."),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Show which slot ran what when, earlier starts of the sweep and what runs now among it.

        Example: flopsfit-ds timeline outputs/quickstart --width 120
        """
        from flopsfit_ds.engine.disk.watch import attempts_on_slots, check_plan
        from flopsfit_ds.records import SweepFolder

        require_sweep(folder)
        spans = attempts_on_slots(SweepFolder(folder))
        if not spans:
            check_plan(SweepFolder(folder))
        if as_json:
            print(json.dumps([asdict(span) for span in spans], indent=1))
            return
        margin = max((len(slot) for span in spans for slot in span.slots), default=0) + len(" ||")
        there = terminal_width()
        print(draw_timeline(spans, width or max(_NARROWEST, _WIDTH if there is None else there - margin)))


def draw_timeline(spans: Sequence[Span], width: int) -> str:
    """One line a slot, a letter a run; `x` ends an attempt that did not complete, `>` one that goes on, `.` is idle.

    Args:
        spans: The attempts.
        width: Characters of the time axis.
    """
    if not spans:
        return "no attempt has begun on a slot"
    first = min(span.began for span in spans)
    length = max(span.ended for span in spans) - first or 1.0
    labels = {span.run_id: span.label for span in spans}
    names = {run_id: _NAMES[number % len(_NAMES)] for number, run_id in enumerate(labels)}
    rows: dict[str, list[str]] = {slot: [_IDLE] * width for span in spans for slot in span.slots}
    busy = 0.0
    for span in spans:
        left = int((span.began - first) / length * (width - 1))
        right = max(left + 1, int((span.ended - first) / length * (width - 1)) + 1)
        busy += (span.ended - span.began) * len(span.slots)
        for slot in span.slots:
            rows[slot][left:right] = [names[span.run_id]] * (right - left)
            if span.outcome == "running":
                rows[slot][right - 1] = _GOES_ON
            elif span.outcome not in ("completed", "diverged"):
                rows[slot][right - 1] = _FAILED
    margin = max(len(slot) for slot in rows)
    lines = [f"{slot:>{margin}} |{''.join(row)}|" for slot, row in sorted(rows.items())]
    lines.append(f"{'':>{margin}}  {format_seconds(length)}, {busy / length / len(rows):.1%} of {len(rows)} slots busy")
    lines += [f"{'':>{margin}}  {names[run_id]} {label}" for run_id, label in labels.items()]
    return "\n".join(lines)

"""What a person sees while a sweep runs: bars on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from flopsfit_ds.base.units import format_seconds
from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.plan.recorded.cpu_time import with_times
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import Attempt, RunRecord
from flopsfit_ds.study.console import Console

_LINE_EVERY_SECONDS = 15.0  # in a log that nobody rewrites: four lines a minute


class SweepDisplay:
    """Hears the engine and shows it; the context manager holds the terminal's live region.

    Progress and remaining time are measured in FLOPs, so that a long point counts for more than a short one.

    Args:
        console: Where it is shown.
        plan: The sweep.
        begin: Called once, in the process that leads the sweep, when its folder is there and runs are to be trained.
    """

    def __init__(self, console: Console, plan: SweepPlan, begin: Callable[[], None] = lambda: None) -> None:
        self._console = console
        self._plan = plan
        self._begin = begin
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._overall: TaskID | None = None
        self._review: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}
        self._runs: dict[str, RunPlan] = {}
        self._steps: dict[str, tuple[int, float | None]] = {}
        self._flops_total = 0.0
        self._flops_done = 0.0
        self._num_total = 0
        self._num_ended = 0
        self._began = self._last_line = time.monotonic()

    def __enter__(self) -> SweepDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bars.stop()

    @property
    def began(self) -> bool:
        """Whether anything was left to train."""
        return self._overall is not None

    def on_review(self, done: int, total: int) -> None:
        """Placements are checked by simulation."""
        if self._review is None:
            if not self._console.is_terminal:
                self._console.print(f"simulating the memory of {total} points that nearly fill a GPU")
            self._review = self._bars.add_task("checking memory", total=total, note="")
        self._bars.update(self._review, completed=done, note=f"{done}/{total} placements simulated")
        if done == total:
            self._bars.remove_task(self._review)

    def on_sweep(self, runs: Sequence[RunPlan], records: Sequence[RunRecord], slots: Sequence[Slot]) -> None:
        """The sweep begins."""
        for warning in self._plan.warnings:
            self._console.warn(warning)
        self._flops_total = sum(run.flops for run in runs)
        self._num_total, self._num_ended = len(runs) + len(records), len(records)
        self._began = time.monotonic()
        where = f" on {len(slots)} slots" if slots else ""
        known = f", {len(records)} already done" if records else ""
        self._console.tell(
            f"[bold]{self._plan.name}[/bold]: training {len(runs)} of {self._num_total} runs{where}{known}, into "
            f"{escape(str(self._plan.folder))}",
            markup=True,
        )
        self._tell_time(runs)
        self._overall = self._bars.add_task("[bold]sweep[/bold]", total=self._flops_total, note=self._overall_note())
        self._begin()

    def _tell_time(self, runs: Sequence[RunPlan]) -> None:
        """Of what is left to train on a CPU, by what was measured here."""
        rest = with_times(replace(self._plan, runs=tuple(runs)))
        makespan = rest.makespan()
        ends = "" if makespan is None else f": about {format_seconds(makespan.seconds)} until the last ends"
        if rest.time_source:
            self._console.tell(f"time: {rest.time_source}{ends}")

    def on_start(self, run: RunPlan, slots: Sequence[Slot]) -> None:
        """An attempt begins."""
        self._runs[run.run_id] = run
        where = "+".join(slot.name for slot in slots)
        self._tasks[run.run_id] = self._bars.add_task(
            f"  {escape(run.label)}", total=run.num_steps, note=f"slot {where}, starting"
        )

    def on_step(self, run_id: str, step: int, loss: float | None) -> None:
        """A run got further."""
        self._steps[run_id] = (step, loss)
        note = f"step {step}" + (f", loss {loss:.3f}" if loss is not None else "")
        if run_id in self._tasks:
            self._bars.update(self._tasks[run_id], completed=step, note=note)
        self._refresh()

    def on_restart(self, run: RunPlan, reason: str) -> None:
        """An attempt did not go on from the newest checkpoint that there is."""
        self._say("yellow", f"{run.label}: {reason}")

    def on_attempt_end(self, run: RunPlan, attempt: Attempt) -> None:
        """An attempt ended; a failure is told, a completed one is told by its record."""
        task = self._tasks.pop(run.run_id, None)
        if task is not None:
            self._bars.remove_task(task)
        self._steps.pop(run.run_id, None)
        if attempt.outcome not in ("completed", "diverged"):
            self._say("yellow", f"{run.label}: attempt {attempt.number} {attempt.outcome}: {attempt.reason}")

    def on_end(self, record: RunRecord) -> None:
        """A run has its record."""
        self._num_ended += 1
        self._flops_done += record.planned.flops
        if record.status == "completed" and record.observed is not None:
            error = f" ± {record.loss_standard_error:.4f}" if record.loss_standard_error is not None else ""
            took = format_seconds(record.observed.seconds)
            where = f"ZeRO-{record.observed.zero_stage} on {record.observed.world_size}"
            self._say("green", f"{record.label}: loss {record.loss:.4f}{error} in {took} ({where})")
        else:
            self._say("red", f"{record.label}: {record.status}: {record.reason}")
        self._refresh()

    def _say(self, colour: str, message: str) -> None:
        text = Text(f"[{self._num_ended}/{self._num_total}] ", style="dim")
        self._console.tell(text.append(message, style=colour))

    def _refresh(self) -> None:
        if self._overall is not None:
            self._bars.update(self._overall, completed=self._flops_reached(), note=self._overall_note())
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = now
            running = ", ".join(self._describe(run_id) for run_id in self._tasks)
            note = self._overall_note() + (f": {running}" if running else "")
            self._console.tell(note)

    def _describe(self, run_id: str) -> str:
        run = self._runs[run_id]
        step, loss = self._steps.get(run_id, (0, None))
        return f"{run.label} {step}/{run.num_steps}" + (f" loss {loss:.3f}" if loss is not None else "")

    def _flops_reached(self) -> float:
        reached = self._flops_done
        for run_id, (step, _) in self._steps.items():
            reached += step / self._runs[run_id].num_steps * self._runs[run_id].flops
        return min(self._flops_total, reached)

    def _overall_note(self) -> str:
        reached, elapsed = self._flops_reached(), time.monotonic() - self._began
        note = f"{self._num_ended}/{self._num_total} runs"
        if reached > 0.02 * self._flops_total and reached < self._flops_total:
            note += f", about {format_seconds(elapsed * (self._flops_total / reached - 1))} left"
        return note

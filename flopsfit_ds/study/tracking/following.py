"""The tracker's side: a process that reads a sweep's files until it is told that no more will come."""

from __future__ import annotations

import hashlib
import logging
import os
import select
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopsfit_ds.base.errors import RecordError
from flopsfit_ds.base.storage import read_json
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.spec.fit_options import COUNT_FIELDS
from flopsfit_ds.study.tracking.services import SERVICES, Service, Told
from flopsfit_ds.study.tracking.state import TrackedRun, TrackerState, folder_of

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

_STEPS_SENT = 500
"""Of a run, evenly spaced: finer than a curve on a screen, and few enough for a database that takes 10 ms a step."""
_LOOK_EVERY_SECONDS = 5.0
_SHARE_OF_TIME = 0.1
"""Of one core, at most, for reading a large sweep again and again."""
_REPORT_RUN = "report"


def follow(name: str, path: Path) -> int:
    """Tell one tracker of a sweep until standard input ends, and then all that is left.

    Args:
        name: Of the tracker.
        path: The sweep's folder.

    Returns:
        0, or 1 where the tracker failed; its state says why.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    folder = SweepFolder(path.absolute())
    state = TrackerState.read(folder, name)
    state.problem = None
    try:
        from accelerate import PartialState

        PartialState(cpu=True)  # Accelerate's trackers ask it which process they are in
        teller = Teller(SERVICES[name](path.name, folder_of(folder)), folder, state, name)
        over = False
        while not over:
            over = _waited(_LOOK_EVERY_SECONDS if teller.seconds is None else teller.pause)
            teller.look(last=over)
        teller.finish()
    except Exception as error:  # whatever a tracker's library, or the network behind it, comes up with
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        state.problem = f"{type(error).__name__}: {first}"[:300]
    state.write(folder, name)
    return 0 if state.problem is None else 1


def _waited(seconds: float) -> bool:
    """Wait, at most so long; whether standard input has ended."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and not os.read(sys.stdin.fileno(), 4096)


class Teller:
    """Tells a tracker what is new in a sweep's files.

    Attributes:
        seconds: How long the last look took; None before the first.
    """

    def __init__(self, service: Service, folder: SweepFolder, state: TrackerState, name: str) -> None:
        self.seconds: float | None = None
        self._service = service
        self._folder = folder
        self._state = state
        self._name = name
        self._open: dict[str, GeneralTracker] = {}
        self._sizes: dict[str, int] = {}

    @property
    def pause(self) -> float:
        """Seconds to the next look."""
        return max(_LOOK_EVERY_SECONDS, (self.seconds or 0.0) / _SHARE_OF_TIME)

    def look(self, *, last: bool = False) -> None:
        """Send what is new of every run; at the `last` look the report too."""
        began = time.monotonic()
        try:
            plan = SweepPlan.from_json_dict(read_json(self._folder.plan))
        except (FileNotFoundError, RecordError):
            return  # the sweep is about to write it
        for run in plan.runs:
            self._tell(run, plan)
        if last:
            self._tell_report(plan)
        self._state.write(self._folder, self._name)
        self.seconds = time.monotonic() - began

    def finish(self) -> None:
        """Close what is open."""
        for tracker in self._open.values():
            tracker.finish()
        self._open.clear()

    def _tell(self, run: RunPlan, plan: SweepPlan) -> None:
        files = self._folder.run(run.run_id)
        told = self._state.runs.get(run.run_id, TrackedRun())
        try:
            record = files.read_record()
        except RecordError:
            record = None  # it will be recorded again
        size = files.metrics.path.stat().st_size if files.metrics.path.exists() else 0
        ended = None if record is None else record.finished_at
        if size == self._sizes.get(run.run_id, 0) and ended == told.finished_at:
            return
        if ended is not None and ended == told.finished_at:
            return  # told in an earlier session
        rows = [row for row in files.metrics.read() if row["step"] > told.step]
        is_new = run.run_id not in self._state.runs
        tracker = self._opened(run.run_id, f"{run.label}.{run.run_id[:6]}", _config(run, plan), told, is_new)
        news = [Told(row["step"], _step_values(row, run)) for row in _thinned(rows, run.num_steps)]
        told.step = news[-1].step if news else told.step
        if record is not None:
            news.append(Told(max(told.step, 1), _record_values(record)))
            told.finished_at = record.finished_at
        self._service.log(tracker, news)
        self._sizes[run.run_id] = size
        self._state.runs[run.run_id] = told
        if record is not None or self._service.one_at_a_time:
            self._open.pop(run.run_id).finish()

    def _opened(self, run_id: str, name: str, config: dict[str, Any], told: TrackedRun, is_new: bool) -> GeneralTracker:
        tracker = self._open.get(run_id)
        if tracker is None:
            tracker = self._service.tracker(run_id, name, config, told.handle)
            tracker.start()
            self._open[run_id] = tracker
            told.handle = self._service.handle_of(tracker)
            if is_new:
                self._service.configure(tracker, config)
        return tracker

    def _tell_report(self, plan: SweepPlan) -> None:
        page = self._folder.report / "index.html"
        if not page.exists():
            return
        digest = hashlib.sha256(page.read_bytes()).hexdigest()
        if digest == self._state.report:
            return
        told = self._state.runs.get(_REPORT_RUN, TrackedRun())
        config = {"sweep": plan.name, "spec": self._folder.spec.read_text(encoding="utf-8")[:5000]}
        is_new = _REPORT_RUN not in self._state.runs
        tracker = self._opened(_REPORT_RUN, f"{plan.name} {_REPORT_RUN}", config, told, is_new)
        self._service.send_report(tracker, page, f"{plan.name}: {len(plan.runs)} runs; the page of its report")
        self._open.pop(_REPORT_RUN).finish()
        self._state.runs[_REPORT_RUN] = told
        self._state.report = digest


def _thinned(rows: list[dict[str, Any]], num_steps: int) -> Iterator[dict[str, Any]]:
    """The steps of a run that are sent: the same whichever sessions they fall in."""
    every = -(-num_steps // _STEPS_SENT)
    return (row for row in rows if row["step"] % every == 0 or row["step"] in (1, num_steps))


def _step_values(row: dict[str, Any], run: RunPlan) -> dict[str, float]:
    """What is told of a step; the tokens are the axis that runs of different batches share."""
    values = {
        "tokens": row["step"] * run.global_batch_sequences * run.context_length,
        "train/loss": row["loss"],
        "train/learning_rate": row["learning_rate"],
        "train/gradient_norm": row.get("gradient_norm"),
        "train/seconds": row["seconds"],
    }
    return {name: value for name, value in values.items() if value is not None}


def _record_values(record: RunRecord) -> dict[str, float]:
    """What is told when a run has its record; without a held-out loss it is no point of a fit."""
    observed = record.observed
    values = {
        "heldout/loss": record.loss,
        "loss_standard_error": record.loss_standard_error,
        "tokens": None if observed is None else observed.num_tokens,
        "speed/tokens_per_second": None if observed is None else observed.tokens_per_second,
        "speed/model_flops_utilisation": None if observed is None else observed.model_flops_utilisation,
        "peak_memory_bytes": None if observed is None else observed.peak_memory_bytes,
        "num_attempts": len(record.attempts),
    }
    return {name: value for name, value in values.items() if value is not None}


def _config(run: RunPlan, plan: SweepPlan) -> dict[str, Any]:
    """The plan of a run as a flat table; what a law needs stands first, in names that a fit reads."""
    wanted = COUNT_FIELDS[plan.spec.fit.parameters]
    named = {
        "num_params": getattr(run, wanted),
        "flops": run.flops,
        "seed": run.seed,
        "compute_budget_flops": run.compute_budget_flops,
        "learning_rate": run.recipe.learning_rate,
        "run_id": run.run_id,
        "counts": plan.spec.fit.parameters,
        "sweep": plan.name,
        "precision": plan.spec.training.precision,
        "layout": run.placement.strategy.label,
    }
    content = run.to_json_dict()
    del content["placement"]
    return {key: value for key, value in (named | dict(_flat("plan", content))).items() if value is not None}


def _flat(prefix: str, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}.{name}", value)
        elif isinstance(value, (str, int, float, bool)):
            yield f"{prefix}.{name}", value

"""What a sweep does now, read from its files: by anyone who sees the folder, while a driver is at work or after.

Nothing is locked and nothing is written; a file that is being replaced is met in its old form or its new. Plans and
records are read without the checks of a driver, so that a thousand runs are shown in a fraction of a second.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flopsfit_ds.base.errors import RecordError
from flopsfit_ds.base.storage import read_json
from flopsfit_ds.engine.disk.lease import STALE_SECONDS, newest_lease
from flopsfit_ds.engine.fork.processes import ProcessIdentity
from flopsfit_ds.records import RunFolder, SweepFolder

State = Literal["completed", "diverged", "oom", "failed", "running", "stopped", "waiting"]
ENDED: tuple[State, ...] = ("completed", "diverged", "oom", "failed")


@dataclass(frozen=True)
class RunState:
    """Where one run stands.

    Attributes:
        run_id: The run.
        label: For people.
        state: How it ended, or `running`, `stopped` (begun, and nobody is at it) or `waiting`.
        reason: Why it did not complete, in words; None where it did or has not ended.
        step: Optimiser steps that are known to be done.
        num_steps: Of the whole run.
        loss: Held-out loss of a completed run, the newest training loss of one under way; None before the first.
        attempt: Number of the newest attempt; 0 before the first.
        slots: Where it runs.
        tokens_per_second: Over the last steps; None where it does not run or has not told two.
        model_flops_utilisation: Model FLOPs over those the devices could do at most; None as above, and on a CPU.
        peak_memory_bytes: Largest allocated so far on rank 0's device; None where it has not told, and on a CPU.
        predicted_memory_bytes: What the plan expects of the fullest device.
        waited_share: Of the newest attempt's time, waiting for samples; None where it does not run or has not told.
        seconds_left: Of training, at the speed of the last steps; None where it does not run or has not told two.
        flops: Training FLOPs of the whole run.
        slot_seconds: What the plan expects it to take, times the devices; None where no time is known.
        weight: The same by the model that ranks layouts, to be compared with other runs' only.
    """

    run_id: str
    label: str
    state: State
    reason: str | None
    step: int
    num_steps: int
    loss: float | None
    attempt: int
    slots: tuple[str, ...]
    tokens_per_second: float | None
    model_flops_utilisation: float | None
    peak_memory_bytes: int | None
    predicted_memory_bytes: int
    seconds_left: float | None
    flops: float
    slot_seconds: float | None
    weight: float
    waited_share: float | None = None

    @property
    def share_done(self) -> float:
        """Of its FLOPs."""
        return 1.0 if self.state in ENDED else self.step / self.num_steps


@dataclass(frozen=True)
class SweepState:
    """Where a sweep stands.

    Attributes:
        name: Of the sweep.
        folder: Its folder.
        driver: Who drives it, or did last, in words; None where nobody ever has.
        driving: Whether a driver is at work.
        num_slots: As the driver last said; None where it never did, and under a cluster's own scheduler.
        sessions: How often a driver has begun.
        runs: Each planned run, in the plan's order.
    """

    name: str
    folder: Path
    driver: str | None
    driving: bool
    num_slots: int | None
    sessions: int
    runs: tuple[RunState, ...]

    def count(self, *states: State) -> int:
        """Runs in any of these states."""
        return sum(run.state in states for run in self.runs)

    @property
    def share_done(self) -> float:
        """Of the sweep's FLOPs; a run that ended counts whole, however it ended."""
        total = sum(run.flops for run in self.runs)
        return sum(run.flops * run.share_done for run in self.runs) / total if total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Until the sweep is done, if all slots stay busy; None where nobody is at work or no run has told its speed.

        Runs that wait take what the plan expects, times what the running ones take over what it expected of them.
        """
        known = [run for run in self.runs if run.seconds_left is not None]
        if not (self.driving and known and self.num_slots):
            return None
        measured = sum((run.seconds_left or 0.0) * len(run.slots) for run in known)
        expected = sum(run.weight * (1 - run.share_done) for run in known)
        ratio = measured / expected if expected else 1.0
        others = [run for run in self.runs if run.state not in ENDED and run.seconds_left is None]
        waiting = ratio * sum(run.weight * (1 - run.share_done) for run in others)
        return max((measured + waiting) / self.num_slots, *(run.seconds_left or 0.0 for run in known))


def look_at(folder: SweepFolder) -> SweepState:
    """Read where a sweep stands.

    Raises:
        RecordError: Its plan is damaged.
        FileNotFoundError: It has none.
    """
    plan = _plain_content(folder.plan)
    events = folder.events.read()
    lease = newest_lease(folder.path / "leases")
    driving = lease is not None and _is_held(folder.path / "leases", lease)
    peak_flops = None if plan["cluster"]["device_name"] == "cpu" else plan["cluster"]["peak_flops"]
    told = {event["run_id"]: event for event in events if event["event"] == "record" and "loss" in event}
    told = {run_id: event for run_id, event in told.items() if event["status"] == "completed"}
    runs = tuple(_run_state(folder, run, told, driving, peak_flops) for run in plan["runs"])
    starts = [event for event in events if event["event"] == "plan"]
    return SweepState(
        name=plan["spec"]["name"],
        folder=folder.path,
        driver=None if lease is None else f"pid {lease['process']['pid']} on {lease['host']}",
        driving=driving,
        num_slots=starts[-1].get("num_slots") if starts else None,
        sessions=len(starts),
        runs=runs,
    )


@dataclass(frozen=True)
class Span:
    """One attempt on its slots.

    Attributes:
        run_id: The run.
        label: For people.
        slots: Where.
        began: Seconds since the epoch.
        ended: As above; now, for one that goes on.
        outcome: How it ended; `running` for one that goes on.
    """

    run_id: str
    label: str
    slots: tuple[str, ...]
    began: float
    ended: float
    outcome: str


def check_plan(folder: SweepFolder) -> None:
    """Go on only where a sweep's plan can be read.

    Raises:
        RecordError: It is damaged.
        FileNotFoundError: There is none.
    """
    _plain_content(folder.plan)


def attempts_on_slots(folder: SweepFolder) -> list[Span]:
    """Every attempt of a sweep that had slots, those of drivers that were killed and those under way among them.

    Most are read from the events; where one has no end there, from its own note: a driver that was killed wrote none.
    """
    events = folder.events.read()
    labels = {event["run_id"]: event["label"] for event in events if event["event"] == "start"}
    ends = [event for event in events if event["event"] == "end" and event["slots"]]
    spans = [
        Span(
            event["run_id"],
            labels.get(event["run_id"], event["run_id"]),
            tuple(event["slots"]),
            event["time"] - event["seconds"],
            event["time"],
            event["outcome"],
        )
        for event in ends
    ]
    told: dict[str, set[int]] = {}
    for event in events:
        if event["event"] == "end":
            told.setdefault(event["run_id"], set()).add(event["attempt"])
    starts = Counter(event["run_id"] for event in events if event["event"] == "start")
    lease = newest_lease(folder.path / "leases")
    driving = lease is not None and _is_held(folder.path / "leases", lease)
    for run_id in (run_id for run_id, times in starts.items() if times > len(told.get(run_id, ()))):
        run = folder.run(run_id)
        for number in sorted(set(run.attempt_numbers()) - told.get(run_id, set())):
            content = _attempt_content(run, number)
            if content is None or not content["attempt"]["slots"]:
                continue
            note = content["attempt"]
            goes_on = content["open"] and (driving or _leased(run.path / "leases"))
            seconds = time.time() - note["started_at"] if goes_on else note["seconds"] or _last_sign(run, number, note)
            ended = note["started_at"] + max(0.0, seconds)  # the clock may have been set back since
            outcome = "running" if goes_on else note["outcome"]
            spans.append(Span(run_id, labels[run_id], tuple(note["slots"]), note["started_at"], ended, outcome))
    return sorted(spans, key=lambda span: span.began)


def _plain_content(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, its checksum not computed again."""
    try:
        return json.loads(path.read_bytes())["content"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: torn or no plan of a sweep ({error}); the command that began it writes it anew"
        ) from None


def _is_held(folder: Path, lease: Mapping[str, Any]) -> bool:
    """Whether the holder of a lease is at work: by its process where that is visible, else by its last sign."""
    if lease["released"]:
        return False
    holder = ProcessIdentity(**lease["process"])
    if holder.is_here:
        return holder.is_alive
    try:
        newest = max(entry.stat().st_mtime for entry in os.scandir(folder) if entry.name.isdigit())
    except (FileNotFoundError, ValueError):
        return False
    return time.time() - newest < STALE_SECONDS


def _run_state(
    sweep: SweepFolder, plan: Mapping[str, Any], told: Mapping[str, Any], driving: bool, peak_flops: float | None
) -> RunState:
    folder, placement = sweep.run(plan["run_id"]), plan["placement"]
    gpus = placement["strategy"]["num_gpus"]
    fixed = {
        "run_id": plan["run_id"],
        "label": plan["label"],
        "num_steps": plan["num_steps"],
        "predicted_memory_bytes": placement["memory"]["peak_allocated_bytes"],
        "flops": plan["flops"],
        "slot_seconds": None if (alone := placement["predicted_seconds"]) is None else alone * gpus,
        "weight": placement["predicted_step_seconds"] * plan["num_steps"] * gpus,
    }
    idle = {"slots": (), "tokens_per_second": None, "model_flops_utilisation": None, "seconds_left": None}
    if folder.record.exists():
        event = told.get(plan["run_id"]) or _record_content(folder)
        done = plan["num_steps"] if event["status"] == "completed" else _last_step(folder)
        ended = {"state": event["status"], "reason": event.get("reason"), "loss": event.get("loss"), "step": done}
        return RunState(**fixed, **idle, **ended, attempt=0, peak_memory_bytes=None)
    number = max(folder.attempt_numbers(), default=0)
    attempt = _attempt_content(folder, number) if number else None
    if not number or (attempt is None and driving):  # the driver is about to note what it has made a folder for
        waiting = {"state": "waiting", "reason": None, "step": 0, "loss": None}
        return RunState(**fixed, **idle, **waiting, attempt=0, peak_memory_bytes=None)
    lines = folder.metrics.tail()
    running = attempt is not None and attempt["open"] and (driving or _leased(folder.path / "leases"))
    begun = {
        "state": "running" if running else "stopped",
        "reason": None if running or attempt is None else attempt["attempt"]["reason"],
        "step": lines[-1]["step"] if lines else 0,
        "loss": lines[-1]["loss"] if lines else None,
        "attempt": number,
        "peak_memory_bytes": next((line["memory"] for line in reversed(lines) if line.get("memory")), None),
    }
    if not running or attempt is None:
        return RunState(**fixed, **idle, **begun)
    world_size = attempt["attempt"]["world_size"]
    pace = _pace(lines, plan, world_size, peak_flops)
    waited = next((line["waited_share"] for line in reversed(lines) if "waited_share" in line), None)
    return RunState(**fixed, **begun, **pace, waited_share=waited, slots=tuple(attempt["attempt"]["slots"]))


def _last_sign(folder: RunFolder, number: int, note: Mapping[str, Any]) -> float:
    """Seconds from the start of an attempt that nobody closed to the last that its workers wrote."""
    path = folder.attempt(number)
    signs = [entry.stat().st_mtime for entry in (path, *path.iterdir(), folder.metrics.path) if entry.exists()]
    return max(0.0, max(signs) - note["started_at"])


def _leased(folder: Path) -> bool:
    lease = newest_lease(folder)
    return lease is not None and _is_held(folder, lease)


def _attempt_content(folder: RunFolder, number: int) -> dict[str, Any] | None:
    try:
        return read_json(folder.attempt(number) / "attempt.json")
    except (FileNotFoundError, RecordError):
        return None


def _record_content(folder: RunFolder) -> dict[str, Any]:
    """Status, reason and loss of a record that no event tells of."""
    try:
        return read_json(folder.record)
    except (FileNotFoundError, RecordError) as error:
        return {"status": "failed", "reason": f"its record cannot be read: {error}", "loss": None}


def _last_step(folder: RunFolder) -> int:
    last = folder.metrics.last()
    return 0 if last is None else last["step"]


def _pace(
    lines: Sequence[Mapping[str, Any]], plan: Mapping[str, Any], world_size: int, peak_flops: float | None
) -> dict[str, Any]:
    """Speed over the last lines, which may begin before a resume: its time counts training alone."""
    first, last = (lines[0], lines[-1]) if len(lines) > 1 else (None, None)
    if first is None or last is None or last["seconds"] <= first["seconds"] or last["step"] <= first["step"]:
        return {"tokens_per_second": None, "model_flops_utilisation": None, "seconds_left": None}
    step_seconds = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    tokens = plan["global_batch_sequences"] * plan["context_length"]
    flops = plan["flops"] / plan["num_steps"]
    used = None if peak_flops is None else flops / step_seconds / world_size / peak_flops
    return {
        "tokens_per_second": tokens / step_seconds,
        "model_flops_utilisation": used,
        "seconds_left": step_seconds * (plan["num_steps"] - last["step"]),
    }

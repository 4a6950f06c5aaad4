"""Attempts on disk: opened before a worker starts, judged when the last has ended, so a killed driver forgets none."""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from flopsfit_ds.base.errors import RecordError
from flopsfit_ds.base.storage import json_converter, read_json, write_json
from flopsfit_ds.engine.executor import Assignment
from flopsfit_ds.engine.fork.processes import ProcessIdentity
from flopsfit_ds.records import Attempt, RunFolder
from flopsfit_ds.train.order import EXIT_OUT_OF_MEMORY, EXIT_OUTCOME_WRITTEN, EXIT_PREEMPTED

AttemptOutcome = Literal["completed", "diverged", "oom", "failed", "hung", "killed", "preempted", "interrupted"]
_FILE = "attempt.json"
_MESSAGE_LENGTH = 600
"""Characters of an error that a record keeps; the whole of it is in the attempt's log."""
EXIT_UNKNOWN = 255
"""What multiprocessing says of a process whose fork server is gone; and what is said of one whose node is."""
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EIO)


@dataclass(frozen=True)
class Exits:
    """How the ranks of an attempt ended.

    Attributes:
        codes: Exit code of each rank, negated signal for one that was killed, in the order in which they became known.
        cause: Why the engine itself ended the attempt; None where it did not.
        cause_outcome: What that makes of the attempt.
        start_step: Optimiser steps done when it began; None where no worker said.
        restarted: Why it did not begin at the newest checkpoint; None where no worker said so.
    """

    codes: dict[int, int]
    cause: str | None
    cause_outcome: AttemptOutcome | None
    start_step: int | None
    restarted: str | None = None


def open_attempt(folder: RunFolder, assignment: Assignment) -> Attempt:
    """Make the folder of the next attempt and note what it is going to be.

    Raises:
        SweepFolderError: The folder cannot be written.
    """
    number = max(folder.attempt_numbers(), default=0) + 1
    strategy = assignment.layout.strategy
    attempt = Attempt(
        number=number,
        outcome="interrupted",
        reason="the driver ended before the attempt did",
        slots=tuple(slot.name for slot in assignment.slots),
        zero_stage=strategy.zero_stage,
        world_size=strategy.num_gpus,
        micro_batch_size_per_gpu=strategy.micro_batch_size_per_gpu,
        gradient_accumulation_steps=assignment.layout.gradient_accumulation_steps,
        start_step=None,
        started_at=time.time(),
        seconds=0.0,
    )
    folder.attempt(number).mkdir()
    _write(folder, attempt, is_open=True, durable=False)
    return attempt


def close_attempt(folder: RunFolder, attempt: Attempt, exits: Exits, seconds: float) -> Attempt:
    """Judge an attempt by its exit codes and by what its ranks wrote, and note it.

    Raises:
        SweepFolderError: The folder cannot be written.
    """
    outcome, reason = judge(folder.attempt(attempt.number), exits)
    closed = Attempt(
        **{
            **asdict(attempt),
            "outcome": outcome,
            "reason": reason,
            "fault": _fault(folder.attempt(attempt.number)) if outcome == "failed" else None,
            "start_step": exits.start_step,
            "restarted": exits.restarted,
            "seconds": seconds,
        }
    )
    _write(folder, closed, is_open=False)
    return closed


def _write(folder: RunFolder, attempt: Attempt, *, is_open: bool, durable: bool = True) -> None:
    content = {"open": is_open, "attempt": asdict(attempt)}
    write_json(folder.attempt(attempt.number) / _FILE, content, durable=durable)


def read_attempts(folder: RunFolder) -> tuple[Attempt, ...]:
    """All attempts of a run; one whose note is torn is left out."""
    attempts = []
    for number in folder.attempt_numbers():
        try:
            content = read_json(folder.attempt(number) / _FILE)
            attempts.append(json_converter(Attempt).validate_python(content["attempt"]))
        except (FileNotFoundError, RecordError, ValidationError, KeyError):
            continue
    return tuple(attempts)


def settle_open_attempts(folder: RunFolder, ending: Exits | None = None) -> list[Attempt]:
    """Close attempts that a dead driver left open: `completed` where the workers had come so far, else `interrupted`.

    Args:
        folder: The run's.
        ending: What ended them, if it is known and was no interruption.

    Returns:
        Those that were open.

    Raises:
        SweepFolderError: The folder cannot be written.
    """
    settled = []
    for number in folder.attempt_numbers():
        path = folder.attempt(number)
        try:
            content = read_json(path / _FILE)
            attempt = json_converter(Attempt).validate_python(content["attempt"])
        except (FileNotFoundError, RecordError, ValidationError, KeyError):
            continue
        if not content["open"]:
            continue
        outcome = read_outcome(path)
        last_sign = max(entry.stat().st_mtime for entry in [path, *path.iterdir()])
        exits = ending or _as_noted(attempt, outcome)
        settled.append(close_attempt(folder, attempt, exits, max(0.0, last_sign - attempt.started_at)))
    return settled


def _as_noted(attempt: Attempt, outcome: dict[str, Any] | None) -> Exits:
    """How an attempt ended of which only files tell."""
    if outcome is None:
        return Exits({}, attempt.reason, "interrupted", None)
    return Exits({}, attempt.reason, "interrupted", outcome["start_step"], outcome.get("restarted"))


def leftover_processes(folder: RunFolder) -> list[ProcessIdentity]:
    """All workers that attempts of a run have noted; those of ended attempts too, it is their pids that decide."""
    found = []
    for path in folder.path.glob("attempt-*/process.*.json"):
        try:
            found.append(ProcessIdentity(**read_json(path)))
        except (RecordError, FileNotFoundError, TypeError):
            continue
    return found


def read_outcome(path: Path) -> dict[str, Any] | None:
    """What rank 0 of an attempt wrote; None where it wrote nothing, or nothing whole."""
    try:
        return read_json(path / "outcome.json")
    except (FileNotFoundError, RecordError):
        return None


def newest_outcome(folder: RunFolder) -> dict[str, Any] | None:
    """The outcome of the last attempt that wrote one."""
    outcomes = (read_outcome(folder.attempt(number)) for number in reversed(folder.attempt_numbers()))
    return next((outcome for outcome in outcomes if outcome is not None), None)


def judge(path: Path, exits: Exits) -> tuple[AttemptOutcome, str | None]:
    """Outcome and reason of an attempt.

    An outcome that was written counts whatever happened afterwards: the loss was measured. Then out-of-memory, which
    makes peers fail in other ways; then what the engine itself did; then the rank that ended first.
    """
    outcome = read_outcome(path)
    if outcome is not None:
        return outcome["status"], outcome["reason"] or outcome.get("restarted")
    errors = _read_errors(path)
    oom = [rank for rank, error in errors.items() if error["kind"] == "oom"]
    oom += [rank for rank, code in exits.codes.items() if code == EXIT_OUT_OF_MEMORY and rank not in oom]
    if oom:
        message = errors[oom[0]]["message"] if oom[0] in errors else "out of memory"
        return "oom", f"rank {oom[0]}: {message[:_MESSAGE_LENGTH]}"
    if exits.codes and all(code == EXIT_PREEMPTED for code in exits.codes.values()):
        return "preempted", f"{exits.cause or 'a worker was asked to end'}; it goes on from its newest checkpoint"
    if exits.cause_outcome is not None:
        return exits.cause_outcome, exits.cause
    return _first_failure(exits.codes, errors, path)


def _first_failure(
    codes: dict[int, int], errors: dict[int, dict[str, str]], path: Path
) -> tuple[AttemptOutcome, str | None]:
    bad = {rank: code for rank, code in codes.items() if code not in (EXIT_OUTCOME_WRITTEN, EXIT_PREEMPTED)}
    killed = [rank for rank, code in bad.items() if code < 0 and rank not in errors]
    if killed and killed[0] == next(iter(bad)):
        return "killed", f"rank {killed[0]} was ended by {_signal_name(-bad[killed[0]])}"
    for rank, code in bad.items():
        if code == EXIT_UNKNOWN and rank not in errors:
            return "killed", f"rank {rank} was lost with the server that forks workers"
        if rank in errors:
            message = f"rank {rank}: {errors[rank]['message'][:_MESSAGE_LENGTH]}"
            return ("interrupted" if is_storage_failure(message) else "failed"), message
        return "failed", f"rank {rank} exited with {code} and said no more; see {path / f'log.{rank}.txt'}"
    return "failed", f"the ranks exited with {sorted(set(codes.values()))} and wrote no outcome; see {path}"


def _fault(path: Path) -> str | None:
    """The error of the program that the first of its ranks noted, whichever rank that was."""
    faults = (error.get("fault") for error in _read_errors(path).values())
    return next((fault for fault in faults if fault), None)


def is_storage_failure(reason: str | None) -> bool:
    """Whether an attempt ended because the folder cannot be written: trying again is no use."""
    return reason is not None and any(os.strerror(number) in reason for number in _STORAGE_ERRORS)


def _read_errors(path: Path) -> dict[int, dict[str, str]]:
    errors = {}
    for file in sorted(path.glob("error.*.json")):
        try:
            errors[int(file.name.split(".")[1])] = read_json(file)
        except (RecordError, ValueError):
            continue
    return errors


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

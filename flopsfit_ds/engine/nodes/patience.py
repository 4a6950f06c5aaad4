"""How long the driver waits for a run: never less than what its steps take and its states need to be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flopsfit_ds.plan.sweep_plan import RunPlan
from flopsfit_ds.train.checkpoint.files import state_bytes

CHECKPOINT_SECONDS = 30.0
"""What a run always has for a checkpoint after it was asked to end."""
_STEPS_BEFORE_CHECKPOINT = 2.0
"""Steps' worth of time for the one that is under way to end."""
_STEPS_BEFORE_HANG = 5.0
"""Steps' worth of silence that are no hang, whatever the time limit: a GPU's queue hides how far a step is."""
_START_SECONDS = 60.0
"""What a start always has before it counts as a hang: on a busy machine imports alone take tens of seconds."""
_BYTES_PER_SECOND = 1e8
"""At which states are written at least: a disk, or a share of a network file system."""


def split_beat(beat: str) -> tuple[int | None, str]:
    """Optimiser steps done and the phase that a heartbeat tells: `7`, `7 (3)` inside a step, or a phase's name."""
    name, _, _ = beat.partition(" ")
    return (int(name), "train") if name.isdigit() else (None, name)


class Pace:
    """What a step of an attempt takes: as predicted, and as the last heartbeats have shown.

    Attributes:
        step: Optimiser steps done, of the rank that is furthest; None before the first is known.
    """

    def __init__(self, predicted_step_seconds: float) -> None:
        self.step: int | None = None
        self._predicted_step_seconds = predicted_step_seconds
        self._measured_seconds = 0.0
        self._since = 0.0

    def note(self, beats: Sequence[str], now: float) -> None:
        """Heartbeats of all ranks were read."""
        step = max((number for number, _ in map(split_beat, beats) if number is not None), default=None)
        if step is None or step == self.step:
            return
        if self.step is not None:
            self._measured_seconds = (now - self._since) / (step - self.step)
        self.step, self._since = step, now

    def grant(self, seconds: float) -> None:
        """So much of the step under way was spent standing still."""
        self._since += seconds

    @property
    def step_seconds(self) -> float:
        """Length of a step, the longer of both."""
        return max(self._predicted_step_seconds, self._measured_seconds)


@dataclass(frozen=True)
class Patience:
    """Time limits of a sweep's runs.

    Attributes:
        hang_timeout_seconds: What the user allows a run to be silent.
        state_bytes: What a checkpoint of each run takes, by its id.
    """

    hang_timeout_seconds: float
    state_bytes: Mapping[str, int]

    @classmethod
    def of(cls, runs: Sequence[RunPlan], hang_timeout_seconds: float) -> Patience:
        """Time limits for the runs of a plan."""
        return cls(
            hang_timeout_seconds,
            {run.run_id: state_bytes(run.num_params_total, run.num_params_trainable) for run in runs},
        )

    def before_hang(self, run_id: str, pace: Pace, phase: str) -> float:
        """Seconds without a heartbeat that are a hang; DeepSpeed says nothing while it writes or reads states."""
        seconds = _STEPS_BEFORE_HANG * pace.step_seconds
        if phase in ("start", "checkpoint"):
            seconds += self.state_bytes[run_id] / _BYTES_PER_SECOND
        if phase == "start":
            seconds = max(seconds, _START_SECONDS)
        return max(self.hang_timeout_seconds, seconds)

    def for_checkpoint(self, run_id: str, pace: Pace) -> float:
        """Seconds from the request to end until a run is killed: the step under way, and a checkpoint."""
        seconds = _STEPS_BEFORE_CHECKPOINT * pace.step_seconds + self.state_bytes[run_id] / _BYTES_PER_SECOND
        return max(CHECKPOINT_SECONDS, seconds)

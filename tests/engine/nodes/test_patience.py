"""How long the driver waits: a run whose steps are long is neither taken for a hang nor ended before its checkpoint."""

from __future__ import annotations

import os
import signal

import pytest

from flopsfit_ds.engine import SweepStoppedError, run_sweep
from flopsfit_ds.engine.disk.attempts import read_attempts
from flopsfit_ds.engine.nodes import patience
from flopsfit_ds.engine.nodes.patience import Pace, Patience
from flopsfit_ds.engine.progress import Silence
from flopsfit_ds.records import SweepFolder
from helpers.engine.toy_phases import PROGRAM, PhasesTask


class Steps(Silence):
    def __init__(self):
        self.heard = []

    def on_step(self, run_id, step, loss):
        self.heard.append(step)


def test_steps_longer_than_the_time_limit_are_no_hang_once_they_are_known(make_plan):
    """The limit is three seconds; after steps of one and a half there is one of six."""
    plan = make_plan(1, max_attempts=1, hang_timeout=3)
    beats = (("0", 1.5), ("1", 1.5), ("2", 6.0), ("3", 0.0))
    (record,) = run_sweep(plan, tasks=lambda run: PhasesTask(run, beats), program=PROGRAM)
    assert (record.status, len(record.attempts)) == ("completed", 1), record.reason


def test_a_step_and_an_evaluation_that_say_they_go_on_are_no_hang(make_plan):
    """Ten seconds without an optimiser step, twice the time limit, in beats a fifth of it apart."""
    plan, steps = make_plan(1, max_attempts=1), Steps()
    inside = [(f"7 ({number})", 1.0) for number in range(5)] + [(f"eval ({number})", 1.0) for number in range(5)]
    beats = (("start", 0.1), ("7", 0.6), *inside)
    (record,) = run_sweep(plan, tasks=lambda run: PhasesTask(run, beats), program=PROGRAM, progress=steps)
    assert record.status == "completed", record.reason
    assert len(steps.heard) > 2, "inside a step, too, it is known how far the run is"
    assert set(steps.heard) == {7}


def test_silence_is_a_hang_whatever_the_phase(make_plan):
    plan = make_plan(1, max_attempts=1)
    (record,) = run_sweep(plan, tasks=lambda run: PhasesTask(run, (("eval (3)", 60.0),)), program=PROGRAM)
    assert record.status == "failed"
    assert record.attempts[0].outcome == "hung"
    assert "rank 0 at eval (3)" in record.reason


class StopAt(Silence):
    """Has the sweep stopped once a run has done so many steps."""

    def __init__(self, step):
        self.step = step

    def on_step(self, run_id, step, loss):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_at_the_second_step(plan, beats, monkeypatch):
    """What the sweep says, and the run's attempt, where a run always has 0.2 s for a checkpoint instead of 30."""
    monkeypatch.setattr(patience, "CHECKPOINT_SECONDS", 0.2)
    with pytest.raises(SweepStoppedError) as stop:
        run_sweep(plan, tasks=lambda run: PhasesTask(run, beats), program=PROGRAM, progress=StopAt(2))
    assert stop.value.exit_code == 75
    (attempt,) = read_attempts(SweepFolder(plan.folder).run(plan.runs[0].run_id))
    return str(stop.value), attempt


def test_a_run_has_as_long_for_its_checkpoint_as_its_steps_take(make_plan, monkeypatch):
    beats = tuple((str(step), 2.5) for step in range(5))
    message, attempt = stop_at_the_second_step(make_plan(1, hang_timeout=6), beats, monkeypatch)
    assert attempt.outcome == "preempted", message
    assert "without a checkpoint" not in message


def test_a_run_that_could_write_no_checkpoint_is_named_with_what_it_loses(make_plan, monkeypatch):
    plan = make_plan(1)
    message, attempt = stop_at_the_second_step(plan, (("0", 0.6), ("1", 0.6), ("2", 60.0)), monkeypatch)
    assert attempt.outcome == "interrupted"
    assert "before it had written a checkpoint" in attempt.reason
    assert f"ended without a checkpoint: {plan.runs[0].label} loses 2 steps" in message


def test_large_states_have_longer_to_be_written():
    small, large = 10**6, 16 * 7 * 10**9
    limits = Patience(600, {"small": small, "large": large})
    assert limits.for_checkpoint("small", Pace(0.1)) == 30
    assert limits.for_checkpoint("large", Pace(0.1)) > large / 1e9, "even on the fastest disk"
    assert Patience(2, {"small": small}).before_hang("small", Pace(0.1), "start") == 60, "it imports"
    assert limits.before_hang("large", Pace(0.1), "checkpoint") > limits.before_hang("large", Pace(0.1), "train") == 600

"""How long the driver waits: a run whose steps are long is neither taken for a hang nor ended before its checkpoint."""

from __future__ import annotations

from toy_phases import PROGRAM, PhasesTask

from flopsfit_ds.engine import run_sweep
from flopsfit_ds.engine.progress import Silence


class Steps(Silence):
    def __init__(self):
        self.heard = []

    def on_step(self, run_id, step, loss):
        self.heard.append(step)


def test_steps_longer_than_the_time_limit_are_no_hang_once_they_are_known(make_plan):
    """The limit is two seconds; after steps of one and a half there is one of six."""
    plan = make_plan(1, max_attempts=1)
    beats = (("0", 1.5), ("1", 1.5), ("2", 6.0), ("3", 0.0))
    (record,) = run_sweep(plan, tasks=lambda run: PhasesTask(run, beats), program=PROGRAM)
    assert (record.status, len(record.attempts)) == ("completed", 1), record.reason


def test_a_step_and_an_evaluation_that_say_they_go_on_are_no_hang(make_plan):
    plan, steps = make_plan(1, max_attempts=1), Steps()
    inside = [(f"7 ({number})", 0.6) for number in range(5)] + [(f"eval ({number})", 0.6) for number in range(5)]
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

"""How long the driver waits: a run whose steps are long is neither taken for a hang nor ended before its checkpoint."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from flopsfit_ds.engine import SweepStoppedError, run_sweep
from flopsfit_ds.engine.disk.attempts import read_attempts
from flopsfit_ds.engine.executor import Assignment
from flopsfit_ds.engine.nodes import patience, slot_executor
from flopsfit_ds.engine.nodes.patience import Pace, Patience
from flopsfit_ds.engine.nodes.slot_executor import SlotExecutor
from flopsfit_ds.engine.nodes.stores import LOOPBACK
from flopsfit_ds.engine.progress import Silence
from flopsfit_ds.engine.slots import NodeSlots
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.train.order import EXIT_PREEMPTED
from helpers.engine.toy_phases import PROGRAM, PhasesTask
from helpers.engine.ways import layout

RUN = "r"


class PlayedNode:
    """One rank of a node that nobody starts: it ends when it is told to, or when its play is over."""

    def __init__(self):
        self.signals, self.exit_code = [], None

    def start(self, run_id, orders, slots):
        pass

    def reap(self):
        return {} if self.exit_code is None else {RUN: {0: self.exit_code}}

    def signal(self, run_id, number):
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.exit_code = -number

    def stopped_ranks(self, run_id):
        return []

    def forget(self, run_id):
        pass

    def end_all(self):
        pass


class PlayedExecutor(SlotExecutor):
    """Watches a rank whose heartbeats are a play, on a clock that waits for nobody."""

    def __init__(self, folder, beats, hang_timeout_seconds):
        self.node, self.clock, self.told = PlayedNode(), 0.0, []
        node_slots = NodeSlots(0, "here", (None,), 1)
        super().__init__(folder, {0: (node_slots, self.node)}, LOOPBACK, Patience(hang_timeout_seconds, {RUN: 0}))
        self._beats, self._due = list(beats), 0.0
        self.submit([Assignment(RUN, layout(1, step_seconds=0.01), tuple(node_slots.slots("")))])
        self.store = self._running[RUN].store

    def _wait(self, timeout_seconds):
        self.clock += timeout_seconds
        while self.clock >= self._due and self.node.exit_code is None:
            if not self._beats:
                self.node.exit_code = EXIT_PREEMPTED  # it was not ended: it ends by itself
                return
            beat, seconds = self._beats.pop(0)
            self.store.set("heartbeat/0", beat)
            self._due += seconds

    def play(self):
        """To its end: the attempt, and the steps that were told meanwhile."""
        while True:
            for report in self.poll(0.5):
                self.told.append(report.step)
                if report.ended:
                    return self.collect(RUN)[0]


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Watches a play of beats, each with the seconds that follow it."""
    folder = SweepFolder(tmp_path)
    folder.prepare()
    folder.run(RUN).path.mkdir()

    def begin(beats, hang_timeout_seconds):
        clock = SimpleNamespace(monotonic=lambda: watching[0].clock if watching else 0.0)
        watching = []
        monkeypatch.setattr(slot_executor, "time", clock)
        watching.append(PlayedExecutor(folder, beats, hang_timeout_seconds))
        return watching[0]

    return begin


def test_steps_longer_than_the_time_limit_are_no_hang_once_they_are_known(watch):
    """The limit is three seconds; after steps of one and a half there is one of four."""
    attempt = watch((("0", 1.5), ("1", 1.5), ("2", 4.0), ("3", 0.0)), 3).play()
    assert attempt.outcome == "preempted", attempt.reason
    attempt = watch((("0", 0.5), ("1", 0.5), ("2", 8.0), ("3", 0.0)), 3).play()
    assert attempt.outcome == "hung", "sixteen times as long as a step is no step"


def test_a_step_and_an_evaluation_that_say_they_go_on_are_no_hang(watch):
    """Ten seconds without an optimiser step, twice the time limit, in beats a fifth of it apart."""
    inside = [(f"7 ({number})", 1.0) for number in range(5)] + [(f"eval ({number})", 1.0) for number in range(5)]
    executor = watch((("start", 0.1), ("7", 0.6), *inside), 5)
    attempt = executor.play()
    assert attempt.outcome == "preempted", attempt.reason
    assert executor.told.count(7) > 2, "inside a step, too, it is known how far the run is"
    assert set(executor.told) <= {7, None}


def test_silence_is_a_hang_whatever_the_phase(watch):
    executor = watch((("eval (3)", 60.0),), 5)
    attempt = executor.play()
    assert attempt.outcome == "hung"
    assert "rank 0 at eval (3)" in attempt.reason
    assert executor.node.signals == [signal.SIGUSR1, signal.SIGKILL], "its stacks first"
    assert 7 <= executor.clock <= 8.5, "the limit, and the time for the stacks"


def test_a_run_has_as_long_for_its_checkpoint_as_its_steps_take(watch):
    """Steps of a minute, the last of which is under way when the run is asked to end: thirty seconds are too short."""
    executor = watch((*((str(step), 60.0) for step in range(3)), ("3", 50.0)), 600)
    while 3 not in executor.told:
        executor.told += [report.step for report in executor.poll(0.5)]
    executor.cancel(RUN, "checkpoint")
    attempt = executor.play()
    assert attempt.outcome == "preempted", attempt.reason
    assert executor.node.signals == [signal.SIGTERM]


def test_a_run_that_writes_no_checkpoint_is_ended_in_the_end(watch):
    executor = watch((("0", 1.0), ("1", 1.0), ("2", 600.0)), 600)
    while 2 not in executor.told:
        executor.told += [report.step for report in executor.poll(0.5)]
    asked = executor.clock
    executor.cancel(RUN, "checkpoint")
    attempt = executor.play()
    assert attempt.outcome == "interrupted"
    assert executor.lost_steps == {RUN: 2}
    assert executor.clock - asked == pytest.approx(patience.CHECKPOINT_SECONDS, abs=1)


class StopAt(Silence):
    """Has the sweep stopped once a run has done so many steps."""

    def __init__(self, step):
        self.step = step

    def on_step(self, run_id, step, loss):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_could_write_no_checkpoint_is_named_with_what_it_loses(make_plan, monkeypatch):
    """Where a run always has 0.2 s for a checkpoint instead of 30."""
    monkeypatch.setattr(patience, "CHECKPOINT_SECONDS", 0.2)
    plan, beats = make_plan(1), (("0", 0.6), ("1", 0.6), ("2", 3600.0))
    with pytest.raises(SweepStoppedError) as stop:
        run_sweep(plan, tasks=lambda run: PhasesTask(run, beats), program=PROGRAM, progress=StopAt(2))
    assert stop.value.exit_code == 75
    (attempt,) = read_attempts(SweepFolder(plan.folder).run(plan.runs[0].run_id))
    assert attempt.outcome == "interrupted"
    assert "before it had written a checkpoint" in attempt.reason
    assert f"ended without a checkpoint: {plan.runs[0].label} loses 2 steps" in str(stop.value)


def test_large_states_have_longer_to_be_written():
    small, large = 10**6, 16 * 7 * 10**9
    limits = Patience(600, {"small": small, "large": large})
    assert limits.for_checkpoint("small", Pace(0.1)) == 30
    assert limits.for_checkpoint("large", Pace(0.1)) > large / 1e9, "even on the fastest disk"
    assert Patience(2, {"small": small}).before_hang("small", Pace(0.1), "start") == 60, "it imports"
    assert limits.before_hang("large", Pace(0.1), "checkpoint") > limits.before_hang("large", Pace(0.1), "train") == 600

"""Packing: near the lower bound, whole slots, nothing starved, corrected by what was measured."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopsfit_ds.engine.schedule.scheduler import Predictions, Scheduler, Waiting
from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.plan.packing import search as packing
from flopsfit_ds.plan.packing.search import Allotment, lower_bound, pack
from flopsfit_ds.records import Attempt
from helpers.engine.ways import layout as one_layout


def layout(num_slots, seconds):
    """One of a run of a single step."""
    return one_layout(num_slots, step_seconds=seconds)


def slots(nodes, per_node):
    return [Slot(node, index, None, f"{node}:{index}") for node in range(nodes) for index in range(per_node)]


def attempt(num_slots, seconds):
    return Attempt(1, "completed", None, (), 0, num_slots, 1, 1, 0, 0.0, seconds)


def carry_out(scheduler, waiting, factor=1.0, clock=None):
    """Play a sweep on a virtual clock: (run, slots, start, end) of each run."""
    waiting = {run.run_id: run for run in waiting}
    running, history = [], []
    while waiting or running:
        for chosen in scheduler.choose(list(waiting.values())):
            seconds = (chosen.layout.predicted_step_seconds + 1) * factor
            running.append((clock[0] + seconds, chosen, clock[0]))
            del waiting[chosen.run_id]
        assert running, "runs wait, slots are free, and nothing starts"
        running.sort(key=lambda item: item[0])
        clock[0], chosen, began = running.pop(0)
        scheduler.note_end(chosen, (attempt(chosen.layout.num_slots, clock[0] - began),))
        history.append((chosen.run_id, chosen.slots, began, clock[0]))
    return history


def make_scheduler(nodes, per_node, points_per_slot=1):
    clock = [0.0]
    return Scheduler(slots(nodes, per_node), points_per_slot, clock=lambda: clock[0]), clock


@given(
    st.lists(st.tuples(st.sampled_from([1, 1, 2, 4]), st.floats(1, 500)), min_size=1, max_size=30),
    st.sampled_from([(1, 4), (2, 4), (2, 2)]),
)
def test_every_run_runs_once_and_no_slot_has_two_at_a_time(runs, shape):
    scheduler, clock = make_scheduler(*shape)
    waiting = [Waiting(str(i), (layout(width, seconds),), 1) for i, (width, seconds) in enumerate(runs)]
    history = carry_out(scheduler, waiting, clock=clock)
    assert sorted(int(run_id) for run_id, *_ in history) == list(range(len(runs)))
    for slot in scheduler.slots:
        spans = sorted((began, end) for _, used, began, end in history if slot in used)
        assert all(end <= began + 1e-6 for (_, end), (began, _) in itertools.pairwise(spans))
    for run_id, used, *_ in history:
        assert len(used) == runs[int(run_id)][0]
        if runs[int(run_id)][0] <= shape[1]:
            assert len({slot.node for slot in used}) == 1, "a point that fits into a node stays in one"


@pytest.mark.parametrize(("nodes", "count"), [(1, 60), (1, 200), (8, 200), (8, 1000)])
def test_packing_is_within_two_percent_of_the_lower_bound(nodes, count):
    draw = random.Random(count)
    runs = []
    for _ in range(count):
        seconds = 100 * math.exp(draw.gauss(0, 1))
        runs.append([Allotment(width, 1, seconds / (width * 0.93 ** math.log2(width))) for width in (1, 2, 4, 8)])
    found = pack(runs, [8] * nodes)
    assert found.makespan_seconds <= 1.02 * lower_bound(runs, 8 * nodes)


def test_a_search_from_a_good_schedule_keeps_it_and_is_short(monkeypatch):
    draw = random.Random(0)
    times = [100 * math.exp(draw.gauss(0, 1)) for _ in range(24)]
    runs = [[Allotment(w, 1, seconds / (w * 0.93 ** math.log2(w))) for w in (1, 2, 4, 8)] for seconds in times]
    found = pack(runs, [8])
    tried = []
    simulate = packing._simulate
    monkeypatch.setattr(packing, "_simulate", lambda *arguments: tried.append(1) or simulate(*arguments))
    assert pack(runs, [8], incumbent=found).makespan_seconds <= found.makespan_seconds
    short = len(tried)
    tried.clear()
    pack(runs, [8])
    assert short < 300 < len(tried)


def test_a_lone_long_run_is_spread_where_that_shortens_the_whole():
    scheduler, clock = make_scheduler(1, 4)
    long = Waiting("long", (layout(1, 1000), layout(2, 520), layout(4, 270)), 1)
    short = [Waiting(str(i), (layout(1, 20), layout(2, 15)), 1) for i in range(4)]
    history = {
        run_id: (used, began, end) for run_id, used, began, end in carry_out(scheduler, [long, *short], clock=clock)
    }
    assert len(history["long"][0]) == 4
    assert all(len(history[str(i)][0]) == 1 for i in range(4)), "cheaper side by side"


def test_a_wide_run_is_not_starved_and_its_gap_is_filled():
    scheduler, clock = make_scheduler(1, 2)
    (running,) = scheduler.choose([Waiting("running", (layout(1, 100),), 1)])
    waiting = {
        "wide": Waiting("wide", (layout(2, 200),), 1),
        "long": Waiting("long", (layout(1, 150),), 1),
        "short": Waiting("short", (layout(1, 60),), 1),
    }
    (short,) = scheduler.choose(list(waiting.values()))
    assert short.run_id == "short", "over before the wide one can start"
    del waiting["short"]
    clock[0] = 61.0
    scheduler.note_end(short, (attempt(1, 61.0),))
    assert scheduler.choose(list(waiting.values())) == [], "the free slot is kept for the wide one"
    clock[0] = 101.0
    scheduler.note_end(running, (attempt(1, 101.0),))
    (wide,) = scheduler.choose(list(waiting.values()))
    assert wide.run_id == "wide"


def test_a_layout_tells_of_a_step_and_a_run_of_how_many():
    scheduler, _ = make_scheduler(1, 1)
    short, long = (Waiting(name, (layout(1, 2.0),), num_steps=steps) for name, steps in (("s", 10), ("l", 100)))
    assert scheduler.forecast([short, long]).makespan_seconds == pytest.approx(220, abs=5)
    (first,) = scheduler.choose([short, long])
    assert first.run_id == "l", "the longer one first"
    scheduler.note_end(first, (attempt(1, 400.0),))
    assert scheduler.predictions.seconds(1, 200.0) == pytest.approx(400, rel=0.1), "it learns from the whole run"


def test_predictions_follow_measured_times():
    predictions = Predictions()
    before = predictions.seconds(1, 100)
    for _ in range(20):
        predictions.note(1, 100, 300.0)
    assert before == pytest.approx(101, abs=1)
    assert predictions.seconds(1, 100) == pytest.approx(300, rel=0.05)
    assert predictions.seconds(4, 100) == pytest.approx(300, rel=0.05), "the best guess for other widths"


def test_small_points_share_a_slot_only_as_often_as_allowed():
    scheduler, _ = make_scheduler(1, 2, points_per_slot=3)
    small = [Waiting(f"small{i}", (layout(1, 100),), 1, points_per_slot=3) for i in range(9)]
    large = [Waiting("large", (layout(1, 100),), 1, points_per_slot=1)]
    started = scheduler.choose([*large, *small])
    by_slot = {}
    for chosen in started:
        by_slot.setdefault(chosen.slots[0], []).append(chosen.run_id)
    counts = sorted(len(runs) for runs in by_slot.values())
    assert counts in ([1, 3], [3, 3])
    assert all(runs == ["large"] for runs in by_slot.values() if "large" in runs)


def test_no_sweep_is_shorter_than_its_longest_run():
    runs = [[Allotment(1, 1, 100.0)], [Allotment(1, 1, 1.0)]]
    assert lower_bound(runs, 8) == pytest.approx(100)
    assert lower_bound([[Allotment(1, 1, 100.0), Allotment(4, 1, 30.0)], runs[1]], 8) == pytest.approx(30)


def test_a_run_wider_than_a_node_waits_for_the_last_of_them():
    wide = [Allotment(4, 1, 10.0)]
    assert packing.list_schedule(wide, [[0.0, 0.0], [50.0, 50.0]]) == 60
    assert packing.list_schedule(wide, [[0.0, 0.0], [0.0, 50.0], [0.0, 20.0]]) == 30


def test_runs_that_share_a_slot_are_no_longer_one_after_another():
    quarter = [[Allotment(1, 1, 100.0)] for _ in range(4)]
    assert lower_bound(quarter, 1, 4) == pytest.approx(100)
    assert lower_bound([*quarter, [Allotment(1, 4, 100.0)]], 1, 4) == pytest.approx(200)


@given(st.lists(st.tuples(st.sampled_from([1, 1, 2, 4]), st.integers(1, 300)), min_size=1, max_size=12))
def test_a_packing_is_the_best_of_the_orders_that_are_tried(widths):
    runs = [Allotment(width, 1, float(seconds)) for width, seconds in widths]
    found = pack([[run] for run in runs], [4, 4]).makespan_seconds
    assert found <= packing.list_schedule(runs, [[0.0] * 4, [0.0] * 4])


def test_a_run_that_is_slower_than_planned_leaves_a_longer_gap():
    """Planned for 100 s, a tenth done after 50: a slot waits 450 s more for the one beside it, and not 50."""
    scheduler, clock = make_scheduler(1, 2)
    scheduler.choose([Waiting("running", (layout(1, 100),), 1)])
    clock[0] = 50.0
    waiting = [Waiting("wide", (layout(2, 900),), 1), Waiting("short", (layout(1, 200),), 1)]
    assert scheduler.choose(waiting) == []
    scheduler.note_step("running", 0.1)
    assert [chosen.run_id for chosen in scheduler.choose(waiting)] == ["short"]


def test_failures_after_a_step_do_not_speak_against_the_slot():
    scheduler, _ = make_scheduler(1, 2, points_per_slot=3)
    small = [Waiting(f"small{number}", (layout(1, 100),), 1, points_per_slot=3) for number in range(6)]
    started = scheduler.choose(small)
    for chosen in started:
        scheduler.note_step(chosen.run_id, 0.5)
    first = [chosen for chosen in started if chosen.slots == started[0].slots]
    for chosen in first:
        failed = Attempt(1, "failed", "why", tuple(slot.name for slot in chosen.slots), 0, 1, 1, 1, 0, 0.0, 9.0)
        scheduler.note_end(chosen, (failed,))
    scheduler.choose([Waiting("next", (layout(1, 100),), 1)])
    assert len(first) == 3
    assert len(scheduler.slots) == 2


def test_runs_that_the_slots_left_do_not_hold_wait_for_a_lost_node_or_take_another_layout():
    near, far = ([Slot(node, i, None, f"{node}:{i}") for i in range(2)] for node in range(2))
    scheduler = Scheduler([*near, *far], clock=lambda: 0.0)
    scheduler.change_slots(near)
    wide, narrow = Waiting("wide", (layout(4, 100),), 1), Waiting("narrow", (layout(2, 10),), 1)
    (narrowest,) = scheduler.choose([wide, narrow])
    assert narrowest.run_id == "narrow"
    assert scheduler.choose([wide]) == []
    assert scheduler.forecast([wide]) is None
    scheduler.note_end(narrowest, (attempt(2, 10),))
    other = Waiting("other", (layout(4, 100),), 1, spare=(layout(1, 300), layout(4, 100)))
    (chosen,) = scheduler.choose([wide, other])
    assert (chosen.run_id, chosen.layout.num_slots) == ("other", 1)
    scheduler.note_end(chosen, (attempt(1, 10),))
    scheduler.change_slots([*near, *far])
    (chosen,) = scheduler.choose([wide])
    assert chosen.slots == (*near, *far)

"""A slot that is broken costs few attempts; a run that is broken costs no slot."""

from __future__ import annotations

import pytest

from flopsfit_ds.engine.schedule.scheduler import Scheduler, Waiting
from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.engine.ways import decide
from flopsfit_ds.plan.sweep_plan import build_plan
from flopsfit_ds.records import Attempt, SweepFolder
from flopsfit_ds.spec import parse_spec
from helpers.engine.toy import SPEC, undisturbed_loss
from helpers.engine.ways import layout, ways


def play(num_slots, widths, fails):
    """Carry runs out on a virtual clock; `fails(run_id, slots)` before the first step, after a second.

    Returns:
        The attempts of each run as (failed, slots), and the numbers of slots in service after each end.
    """
    clock, in_service = [0.0], []
    scheduler = Scheduler([Slot(0, i, None, str(i)) for i in range(num_slots)], clock=lambda: clock[0])
    histories = {str(number): [] for number in range(len(widths))}
    jobs = {run_id: ways([layout(width) for width in widths[int(run_id)]]) for run_id in histories}
    running = {}
    while True:
        waiting = []
        for run_id, history in histories.items():
            verdict = decide(jobs[run_id], history, 3)
            ended = verdict.status is not None or any(attempt.outcome == "completed" for attempt in history)
            if not ended and run_id not in running:
                waiting.append(Waiting(run_id, verdict.layouts, 1, 1, verdict.avoid))
        for chosen in scheduler.choose(waiting):
            is_bad = fails(chosen.run_id, {slot.index for slot in chosen.slots})
            running[chosen.run_id] = (clock[0] + (1 if is_bad else 10), is_bad, chosen)
            if not is_bad:
                scheduler.note_step(chosen.run_id, 0.5)
        if not running:
            assert not waiting, "runs wait, slots are free, and nothing starts"
            ends = {
                run_id: [(a.outcome == "failed", a.slots) for a in history] for run_id, history in histories.items()
            }
            return ends, in_service
        run_id, (clock[0], is_bad, chosen) = min(running.items(), key=lambda item: item[1][0])
        del running[run_id]
        names = tuple(slot.name for slot in chosen.slots)
        number = len(histories[run_id]) + 1
        outcome, start_step = ("failed", None) if is_bad else ("completed", 0)
        attempt = Attempt(number, outcome, "why", names, 0, len(names), 8, 1, start_step, 0.0, 1.0)
        histories[run_id].append(attempt)
        scheduler.note_end(chosen, [attempt])
        in_service.append(sorted(slot.index for slot in scheduler.slots))


@pytest.mark.parametrize("widths", [[[1]] * 20, [[1, 2, 4]] * 20, [[1]] * 12 + [[2]] * 4])
def test_a_broken_slot_is_set_aside_after_three_runs(widths):
    ends, in_service = play(4, widths, lambda _run_id, slots: 3 in slots)
    assert all(not history[-1][0] for history in ends.values()), "all runs complete"
    assert in_service[-1] == [0, 1, 2]
    assert sum(failed for history in ends.values() for failed, _ in history) <= 5


def test_wide_runs_avoid_the_slots_on_which_they_failed():
    ends, in_service = play(4, [[2]] * 6, lambda _run_id, slots: 3 in slots)
    assert all(not history[-1][0] and len(history) <= 2 for history in ends.values())
    assert in_service[-1] == [0, 1, 2, 3], "which of two slots is broken is not known"


def test_broken_runs_cost_no_slot():
    ends, in_service = play(4, [[1]] * 20, lambda run_id, _slots: int(run_id) < 12)
    for run_id, history in ends.items():
        assert [failed for failed, _ in history] == ([True] * 3 if int(run_id) < 12 else [False])
        assert len({slots for _, slots in history}) == len(history), "each attempt on another slot"
    assert in_service[-1] == [0, 1, 2, 3]


def test_the_last_slot_and_one_that_a_run_needs_stay():
    ends, in_service = play(1, [[1]] * 5, lambda _run_id, _slots: True)
    assert all(len(history) == 3 for history in ends.values())
    assert in_service[-1] == [0]
    ends, in_service = play(2, [[1]] * 8 + [[2]], lambda _run_id, slots: slots == {1})
    assert all(not history[-1][0] for history in ends.values())
    assert all(not failed for failed, _ in ends["8"])


def test_a_sweep_on_a_machine_with_a_broken_device_completes(run_toys, tmp_path, monkeypatch, caplog):
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\nfor i in 0 1 2 3; do echo "$i, GPU-aaaa$i"; done\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    points = ", ".join(f"{{num_params: 11k, num_tokens: {40 + 2 * i}k}}" for i in range(9))
    text = SPEC.format(root=tmp_path, points=points, slots=4, num_gpus="[1]").replace("cpu", "H100-SXM")
    plan = build_plan(parse_spec(text))
    records = run_toys(plan, common={"step_seconds": 0.04, "bad_device": "3"})
    assert [record.loss for record in records] == [undisturbed_loss()] * 9, [record.reason for record in records]
    failed = [attempt for record in records for attempt in record.attempts if attempt.outcome == "failed"]
    assert [attempt.slots for attempt in failed] == [("3",)] * 3
    events = SweepFolder(plan.folder).events.read()
    assert [event["slot"] for event in events if event["event"] == "set_aside"] == ["3"]
    assert "slot 3 is set aside: 3 points failed there" in caplog.text

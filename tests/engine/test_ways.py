"""What becomes of a run after its attempts: tried again, in which way, or given up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flopsfit_ds.engine.ways import decide, fitting
from helpers.engine.ways import history, layout, ways

FAILS_TO_START = ("failed", None)


@pytest.mark.parametrize(
    "before",
    [
        (),
        (("interrupted", 0), ("interrupted", 500)),
        (("killed", 0), ("preempted", 500), ("interrupted", None), ("preempted", 500)),
        (("hung", 0), ("killed", 20), ("preempted", 40)),
    ],
)
def test_failures_to_start_are_bounded_however_often_a_run_was_resumed(before):
    assert decide(ways([layout(1)]), history(*before, *[FAILS_TO_START] * 2), 3).status is None
    verdict = decide(ways([layout(1)]), history(*before, *[FAILS_TO_START] * 3), 3)
    assert verdict.status == "failed"
    assert verdict.reason.startswith("3 attempts failed")


def test_failures_before_the_run_got_further_do_not_count():
    ends = [("killed", 0), ("killed", 0), ("killed", 10), FAILS_TO_START]
    assert decide(ways([layout(1)]), history(*ends), 3).layouts == (layout(1),)
    assert decide(ways([layout(1)]), history(*ends, ("failed", 10)), 3).status == "failed"


def test_what_the_program_does_wrong_twice_at_one_place_is_not_tried_a_third_time():
    def after(*faults):
        ends = history(*[FAILS_TO_START] * len(faults))
        attempts = [replace(each, fault=fault) for each, fault in zip(ends, faults, strict=True)]
        return decide(ways([layout(1)]), attempts, 9)

    twice = after("TypeError: no at loss.py:3", "TypeError: no at loss.py:3")
    assert twice.status == "failed"
    assert "2 attempts failed alike" in twice.reason
    assert after("TypeError: no at loss.py:3").status is None
    assert after("TypeError: no at loss.py:3", "TypeError: no at loss.py:4").status is None
    assert after(None, None, None).status is None  # devices and networks: as often as the spec says


@pytest.mark.parametrize("outcome", ["interrupted", "preempted"])
def test_interruptions_and_preemptions_are_no_failures(outcome):
    ends = [(outcome, None)] * 40 + [(outcome, 5)] * 40
    assert decide(ways([layout(1)]), history(*ends), 1).layouts == (layout(1),)
    assert decide(ways([layout(1)]), history(*ends, FAILS_TO_START, *ends, FAILS_TO_START), 2).status == "failed"


def test_out_of_memory_on_fewer_slots_than_planned_halves_the_micro_batch():
    planned, fallback = layout(8, 8, 8), layout(8, 4, 16)
    whole = ways([layout(4, 16, 8), planned], planned=1, reductions=[fallback])
    tried = fitting(whole, 4)
    sizes = []
    for count in range(1, 6):
        verdict = decide(tried, history(*[("oom", None)] * count, slots=tuple("0123")), 3)
        sizes += [each.strategy.micro_batch_size_per_gpu for each in verdict.layouts]
        assert all(
            each.strategy.micro_batch_size_per_gpu * each.gradient_accumulation_steps == 128 for each in verdict.layouts
        )
    assert sizes == [8, 4, 2, 1]
    assert verdict.status == "oom"
    assert decide(whole, history(("oom", None), slots=tuple("01234567")), 3).layouts == (fallback,)


def test_a_run_with_a_checkpoint_goes_on_with_as_many_ranks_as_wrote_it():
    tried = ways([layout(1), layout(2), layout(4)])
    assert decide(tried, history(("preempted", 0), slots=("0", "1")), 3).layouts == tried.layouts
    resumed = history(("preempted", 0), ("preempted", 500), slots=("0", "1"))
    assert [each.num_slots for each in decide(tried, resumed, 3).layouts] == [2]

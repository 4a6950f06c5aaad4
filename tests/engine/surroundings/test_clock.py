"""The machine's clock is set forth and back while a sweep runs: nothing is judged by it."""

from __future__ import annotations

from flopsfit_ds.cli.sweeping.timeline import draw_timeline
from flopsfit_ds.engine.disk.lease import newest_lease
from flopsfit_ds.engine.disk.watch import attempts_on_slots, look_at
from helpers.engine.clock import set_clock
from helpers.engine.drivers import let_go, start, sweep_folder, wait_until, wait_until_held
from helpers.engine.toy import steps_trained_twice, undisturbed_loss

DAY = 86_400.0


def wait_for_a_beat(folder):
    """Until the driver has beaten its lease again: by then it has looked at its workers, too."""
    leases = sweep_folder(folder).path / "leases"
    before = newest_lease(leases)["beats"]
    wait_until(lambda: newest_lease(leases)["beats"] > before, folder)


def test_a_clock_that_is_set_forth_and_back_while_a_sweep_runs(tmp_path, faults):
    """Two runs begin three days ahead; in the middle of them it is a day behind, and then three days ahead again."""
    faults.inject("clock set forth and back", times=2)
    environment = set_clock(tmp_path, 3 * DAY)
    driver = start(tmp_path, 3, "[1]", 2, 0.0, held=True, **environment)
    wait_until_held(tmp_path, 2)
    set_clock(tmp_path, -DAY)
    wait_for_a_beat(tmp_path)
    spans = attempts_on_slots(sweep_folder(tmp_path))
    assert [span.outcome for span in spans] == ["running"] * 2
    assert all(span.ended >= span.began for span in spans), "nothing ends before it has begun"
    assert " -" not in draw_timeline(spans, 40), "no time is below zero"
    assert look_at(sweep_folder(tmp_path)).count("running") == 2
    assert start(tmp_path, 3, "[1]", 2, 0.0, **environment).wait(120) == 2, "its lease is not stale"
    set_clock(tmp_path, 3 * DAY)
    wait_for_a_beat(tmp_path)
    set_clock(tmp_path, -DAY)
    let_go(tmp_path)
    assert driver.wait(120) == 0, (tmp_path / "log.txt").read_text()
    records = list(sweep_folder(tmp_path).records())
    assert [record.loss for record in records] == [undisturbed_loss()] * 3
    attempts = [attempt for record in records for attempt in record.attempts]
    assert [attempt.outcome for attempt in attempts] == ["completed"] * 3, "none was ended, or counted, by the clock"
    assert all(0 <= attempt.seconds < DAY for attempt in attempts)
    faults.cost("clock set forth and back", steps_trained_twice(sweep_folder(tmp_path).path), allowed=0)

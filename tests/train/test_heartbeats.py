"""What a worker says of how far it is, while a step or the evaluation goes on."""

from __future__ import annotations

import signal
import time

from helpers.train.ranks import Layout, bench_of
from helpers.train.slow_workloads import SlowWorkload


def test_long_steps_and_a_long_evaluation_show_that_they_go_on(server, tmp_path):
    """A step of eight micro-batches, and an evaluation of eight batches, each of half a second."""
    points = [{"num_params": 6e3, "num_tokens": 128}]
    changes = {"design__points": points, "data__heldout_tokens": 128, "training__warmup_fraction": 0}
    bench = bench_of(server, tmp_path, Layout(0, 1, 8), SlowWorkload, **changes)
    assert bench.run.num_steps == 1
    attempt = bench.start(checkpoint_every_seconds=1e9)
    beats, deadline = [], time.monotonic() + 240
    while (beat := attempt.phase()) != "end" and time.monotonic() < deadline:
        if beat and beat not in beats:
            beats.append(beat)
        time.sleep(0.02)
    assert attempt.wait() == [0], attempt.logs()
    names = [beat.split()[0] for beat in beats]
    assert names.count("0") >= 3, f"during the first step: {beats}"
    assert names.count("eval") >= 3, f"during the evaluation: {beats}"
    assert len(beats) < 25, "a few a second at most"


def test_a_whole_checkpoint_is_told(server, tmp_path):
    attempt = bench_of(server, tmp_path, Layout(0, 1)).stop_at(3, signal.SIGTERM)
    assert int(attempt.store.get("saved_step")) == attempt.steps_done() >= 3

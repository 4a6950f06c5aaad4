"""Kills, stops and divergence: a run goes on where it was, or ends with a reason."""

from __future__ import annotations

import signal

import pytest

from flopsfit_ds.records import RunFolder
from flopsfit_ds.train.order import EXIT_FAILED, EXIT_PREEMPTED
from helpers.sweeps import with_values
from helpers.train.broken_models import FailingEvaluationWorkload, FailingWorkload, NanGradientWorkload, NanWorkload
from helpers.train.ranks import CHANGES, SHORT, STEPS, Bench, Layout, assert_same


@pytest.mark.parametrize(
    "layout", [Layout(0, 1), pytest.param(Layout(2, 2, accumulation=2), marks=pytest.mark.long), Layout(3, 2)], ids=str
)
def test_a_run_that_was_killed_ends_exactly_as_one_that_was_not(server, trained, tmp_path, layout):
    bench = Bench(server, tmp_path, layout)
    killed = bench.stop_at(10, signal.SIGKILL)
    assert killed.codes == [-signal.SIGKILL] * layout.world_size
    resumed = bench.finish()
    assert resumed.outcome["start_step"] >= 9
    assert_same(resumed, trained(bench.layout, **CHANGES))
    assert resumed.outcome["observed"]["num_tokens"] == 128 * STEPS


@pytest.mark.parametrize("layout", [Layout(0, 1), Layout(1, 2)], ids=str)
def test_a_run_that_was_asked_to_stop_saves_and_goes_on(server, trained, tmp_path, layout):
    """The signal reaches one rank only; all stop at the same step."""
    bench = Bench(server, tmp_path, layout)
    stopped = bench.stop_at(5, signal.SIGTERM, rank=layout.world_size - 1)
    assert stopped.codes == [EXIT_PREEMPTED] * layout.world_size, stopped.logs()
    saved = stopped.folder.metrics.last()
    resumed = bench.finish()
    assert saved is not None
    assert resumed.outcome["start_step"] == saved["step"]
    assert_same(resumed, trained(bench.layout, **CHANGES))


@pytest.mark.parametrize(
    "layout",
    [
        Layout(0, 1),
        *(pytest.param(Layout(*each), marks=pytest.mark.long) for each in ((0, 2), (1, 2), (2, 1))),
        Layout(3, 2),
    ],
    ids=str,
)
def test_a_learning_rate_beyond_reason_ends_as_diverged(server, tmp_path, layout):
    bench = Bench(server, tmp_path, layout, with_values(SHORT, training__learning_rates=[1e30]))
    attempt = bench.finish()
    outcome = attempt.outcome
    assert outcome["status"] == "diverged"
    assert outcome["loss"] is None
    assert outcome["reason"]
    assert outcome["observed"]["num_tokens"] < 128 * STEPS


def test_a_loss_that_leaves_without_becoming_infinite_ends_as_diverged(server, tmp_path):
    values = with_values(SHORT, training__learning_rates=[30.0], training__gradient_clipping=0)
    attempt = Bench(server, tmp_path, Layout(0, 1), values).finish()
    assert attempt.outcome["status"] == "diverged"
    assert attempt.outcome["loss"] is None
    assert len(attempt.losses) == attempt.outcome["observed"]["num_tokens"] / 128  # one a step, to the last


@pytest.mark.parametrize(
    "layout", [Layout(0, 1), pytest.param(Layout(2, 1), marks=pytest.mark.long), Layout(3, 2)], ids=str
)
@pytest.mark.parametrize("workload", [NanWorkload, NanGradientWorkload])
def test_what_is_not_a_number_from_the_first_step_on_ends_as_diverged(server, tmp_path, workload, layout):
    bench = Bench(server, tmp_path, layout)
    bench.workload = workload(bench.workload.shape, bench.workload.tokens)
    outcome = bench.finish().outcome
    assert outcome["status"] == "diverged"
    assert outcome["loss"] is None
    assert "nan at step" in outcome["reason"] or "gradient of step 1 is not finite" in outcome["reason"]


def test_a_model_that_fails_leaves_its_reason_and_a_failed_exit(server, tmp_path):
    bench = Bench(server, tmp_path, Layout(0, 1))
    bench.workload = FailingWorkload(bench.workload.shape, bench.workload.tokens)
    attempt = bench.start(checkpoint_every_seconds=1e9)
    assert attempt.wait() == [EXIT_FAILED]
    error = RunFolder(tmp_path / "run").attempt(1) / "error.0.json"
    assert "the user's loss has a bug" in error.read_text()


def test_an_evaluation_that_fails_does_not_cost_the_training(server, trained, tmp_path):
    layout = Layout(2, 2)
    bench = Bench(server, tmp_path, layout)
    workload = bench.workload
    bench.workload = FailingEvaluationWorkload(workload.shape, workload.tokens)
    failed = bench.start(checkpoint_every_seconds=0.0)
    assert failed.wait() == [EXIT_FAILED] * 2
    bench.workload = workload
    attempt = bench.finish()
    assert attempt.outcome["start_step"] == STEPS
    assert attempt.outcome["observed"]["missing"]["train_loss"]
    assert_same(attempt, trained(layout, **CHANGES))

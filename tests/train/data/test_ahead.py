"""Batches built ahead by processes of their own: the same losses, and errors are told as they are without."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from flopsfit_ds.base.storage import read_json
from flopsfit_ds.train.data.sampling import samples_of_step, share_of_rank
from flopsfit_ds.train.order import EXIT_FAILED, EXIT_PREEMPTED
from helpers.train.ranks import Layout, assert_same, bench_of
from helpers.train.slow_workloads import AheadOfItsLoss, DrawnSamples, OneBadItem

ALONE = Layout(0, 1, 2)
TEN_STEPS = {"design__points": [{"num_params": 6e3, "num_tokens": 1280}]}


def bench(server, tmp_path, name, layout, workload=None, **changes):
    folder = tmp_path / name
    folder.mkdir()
    return bench_of(server, folder, layout, workload, **changes)


def test_losses_are_the_same_to_the_bit_on_two_ranks_and_after_a_stop(server, tmp_path):
    layout = Layout(2, 2, 2)
    expected = bench(server, tmp_path, "asked", layout).finish()
    ahead = bench(server, tmp_path, "ahead", replace(layout, data_workers=2))
    assert ahead.stop_at(10, signal.SIGTERM).codes == [EXIT_PREEMPTED] * 2
    assert_same(ahead.finish(), expected)


def test_a_batch_is_built_while_the_one_before_is_trained_on(server, tmp_path):
    trained = bench(server, tmp_path, "ahead", replace(ALONE, data_workers=1), AheadOfItsLoss, **TEN_STEPS)
    attempt = trained.finish()
    assert len(attempt.losses) == 10
    built_by = {path.read_text() for path in (tmp_path / "ahead").glob("batches/*")}
    assert len(built_by) == 1
    assert not built_by & set(map(str, attempt.pids))


def test_what_is_drawn_does_not_depend_on_the_number_of_processes(server, tmp_path):
    one, two = (
        bench(server, tmp_path, str(count), replace(ALONE, data_workers=count), DrawnSamples, **TEN_STEPS).finish()
        for count in (1, 2)
    )
    assert_same(one, two)
    seeded = {"training__seeds": [1]}
    other = bench(server, tmp_path, "seed", replace(ALONE, data_workers=1), DrawnSamples, **TEN_STEPS, **seeded)
    assert other.finish().losses != one.losses


@pytest.mark.parametrize("data_workers", [0, 1])
def test_an_item_that_cannot_be_read_is_named_at_its_step(server, tmp_path, data_workers):
    broken = bench(server, tmp_path, "broken", replace(ALONE, data_workers=data_workers), OneBadItem)
    attempt = broken.start(1e9)
    assert attempt.wait() == [EXIT_FAILED], attempt.logs()
    tenth = samples_of_step(9, broken.run.global_batch_sequences, broken.workload.num_training_samples, broken.run.seed)
    second_half = share_of_rank(tenth, 0, 1, 2)[1]
    error = read_json(attempt.folder.attempt(1) / "error.0.json")
    assert error["message"] == f"DataError: dataset: item {second_half[0]} is no pair"

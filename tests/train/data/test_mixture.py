"""Mixtures: exact shares from seed and step alone, a held-out loss by weight, repeats by source, and refusals."""

from __future__ import annotations

import math
import random
import signal
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopsfit_ds.base.errors import DataError, SpecError
from flopsfit_ds.records import RunFolder
from flopsfit_ds.spec import validate_spec
from flopsfit_ds.study.preparing import prepare_data
from flopsfit_ds.study.steps import _token_task, build_plan, run_sweep
from flopsfit_ds.train.data.sampling import Mixture, samples_of_steps, share_of_rank
from helpers.sweeps import MACHINE, MICRO, with_values, write_bytes_corpus
from helpers.train.ranks import Bench, Layout

PROSE = {"source": "text", "paths": ["corpus.txt"], "heldout_tokens": 1024}
NOISE = {"source": "text", "paths": ["noise.txt"], "heldout_tokens": 512}
MIXED = {"source": "mixture", "sources": {"prose": PROSE, "noise": NOISE}, "weights": {"prose": 0.7, "noise": 0.3}}

seeds = st.integers(0, 2**32 - 1)
mixtures = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 200)), min_size=2, max_size=5).map(
    lambda pairs: Mixture(tuple("abcde"[: len(pairs)]), *zip(*pairs, strict=True))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("mixture")
    write_bytes_corpus(base / "corpus.txt")
    generator = random.Random(0)
    (base / "noise.txt").write_text("".join(chr(generator.randrange(128, 256)) for _ in range(2000)))
    return base


def values(**changes: Any) -> dict[str, Any]:
    return with_values(MICRO, data=MIXED, hardware__gpus_per_node=1, **changes)


def plan_of(spec: dict[str, Any], folder: Path) -> Any:
    return build_plan(validate_spec(spec, "test"), spec_folder=folder, machine=MACHINE)


def source_of(samples: np.ndarray, mixture: Mixture) -> np.ndarray:
    return np.searchsorted(np.cumsum(mixture.sizes), samples, side="right")


@given(mixtures, seeds, st.integers(1, 7))
def test_shares_are_exact_after_each_round_of_the_weights_and_near_at_every_sample(mixture, seed, rounds):
    total = sum(mixture.weights)
    found = source_of(mixture.samples_at(np.arange(rounds * total), seed), mixture)
    for number, weight in enumerate(mixture.weights):
        so_far = np.cumsum(found == number)
        assert so_far[total - 1 :: total].tolist() == [weight * (each + 1) for each in range(rounds)]
        exact = np.arange(1, len(found) + 1) * weight / total
        assert np.abs(so_far - exact).max() < len(mixture.weights)


@settings(max_examples=25)
@given(mixtures, seeds)
def test_each_source_is_gone_through_whole_before_any_of_it_is_seen_again(mixture, seed):
    samples = mixture.samples_at(np.arange(2000), seed)
    found = source_of(samples, mixture)
    for number, size in enumerate(mixture.sizes):
        own = samples[found == number] - sum(mixture.sizes[:number])
        for first in range(0, len(own) - size + 1, size):
            assert sorted(own[first : first + size].tolist()) == list(range(size))


@given(mixtures, seeds, st.integers(0, 10**12), st.integers(1, 16))
def test_any_step_is_found_alone_for_any_number_of_ranks(mixture, seed, step, half):
    batch, size = 2 * half, sum(mixture.sizes)
    together = list(samples_of_steps(step, step + 5, batch, size, seed, mixture))
    for number, samples in enumerate(together):
        (alone,) = samples_of_steps(step + number, step + number + 1, batch, size, seed, mixture)
        assert np.array_equal(alone, samples)
        ranks = np.concatenate([share_of_rank(samples, rank, 2, half).ravel() for rank in range(2)])
        assert sorted(ranks.tolist()) == sorted(samples.tolist())


@given(seeds, st.integers(0, 2**55))
def test_weights_of_nine_digits_are_exact_far_into_a_run(seed, position):
    mixture = Mixture(("a", "b"), (333_333_334, 666_666_667), (10**6, 10**6))
    (first,), (second,) = mixture.taken(np.array([position]), seed).tolist()
    assert first + second == position
    assert abs(first - Fraction(position * 333_333_334, 1_000_000_001)) < 1


def test_seeds_have_orders_of_their_own():
    mixture = Mixture(("a", "b"), (7, 3), (1000, 1000))
    assert len({tuple(mixture.samples_at(np.arange(100), seed)) for seed in range(10)}) == 10


def test_batches_hold_windows_of_the_source_that_a_sample_is_numbered_in(folder, tmp_path):
    plan = replace(plan_of(values(), folder), folder=tmp_path)
    workload: Any = _token_task(plan, plan.runs[0]).workload
    samples = np.concatenate(list(samples_of_steps(0, 25, 8, 10**9, 0, workload.mixture)))
    inputs, targets = workload.training_batch(samples)
    loud = inputs.numpy().max(axis=1) >= 128  # letters beyond ASCII are noise
    assert loud.sum() == 60
    assert np.array_equal(loud, samples >= workload.parts[0].num_training_samples)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])


def test_the_heldout_loss_weighs_sources_and_not_their_sizes(folder, tmp_path):
    plan = replace(plan_of(values(), folder), folder=tmp_path)
    workload: Any = _token_task(plan, plan.runs[0]).workload
    batch = workload.heldout_batch(np.arange(workload.num_heldout_samples))
    loud, weights = batch[0].numpy().max(axis=1) >= 128, workload.heldout_weights(batch).numpy()
    assert loud.sum() == 511 // 16
    assert len(loud) == 511 // 16 + 1023 // 16
    assert weights[loud].sum() / weights.sum() == pytest.approx(0.3)


def test_a_mixture_is_trained_from_a_spec_and_resumed_with_the_same_losses(folder, tmp_path, server):
    plan = plan_of(values(output_root=str(tmp_path)), folder)
    (record,) = run_sweep(plan)
    assert record.status == "completed"
    assert record.loss is not None
    prose, noise = record.sources["prose"], record.sources["noise"]
    assert (prose.num_tokens, noise.num_tokens) == (800 * 0.7 * 16, 800 * 0.3 * 16)
    unique = (4000 - 512 - 1) // 16 * 16  # two bytes a letter
    assert noise.unique_tokens == unique
    assert noise.repeats == pytest.approx(800 * 0.3 * 16 / unique)
    assert record.unique_tokens == plan.runs[0].unique_tokens == int(12800 * 0.7 + 4000 - 512)
    assert record.bits_per_byte == pytest.approx(record.loss / math.log(2))

    bench = Bench(server, tmp_path, Layout(0, 1, data_workers=1))
    bench.run, bench.workload = plan.runs[0], _token_task(plan, plan.runs[0]).workload  # pyright: ignore[reportAttributeAccessIssue]
    bench.stop_at(10, signal.SIGKILL)
    resumed = bench.finish()
    assert resumed.outcome["start_step"] >= 9
    whole = RunFolder(plan.folder / "runs" / record.run_id).metrics.read()
    assert resumed.losses == pytest.approx([line["loss"] for line in whole], rel=1e-6)
    assert resumed.outcome["loss"] == pytest.approx(record.loss, rel=1e-6)


def test_repeats_are_told_by_source_and_name_the_law_beyond_four(folder):
    plan = plan_of(values(design__points=[{"num_params": 6e3, "num_tokens": 64000}]), folder)
    (said,) = [warning for warning in plan.warnings if "repeats" in warning]
    assert "19.2k tokens of noise of 3.49k unique ones: the data repeats 5.5 times" in said
    assert "data-constrained" in said
    small = plan_of(values(design__points=[{"num_params": 6e3, "num_tokens": 6400}]), folder)
    assert not [warning for warning in small.warnings if "repeats" in warning]
    assert small.runs[0].unique_tokens == 200_000 - 1024 + 4000 - 512


def test_weights_and_sources_are_part_of_what_a_run_is(folder):
    changed = [
        {},
        {"weights": {"prose": 0.6, "noise": 0.4}},
        {"sources": {"prose": PROSE, "noise": {**NOISE, "heldout_tokens": 256}}},
    ]
    ids = [plan_of(values() | {"data": MIXED | change}, folder).runs[0].run_id for change in changed]
    assert len(set(ids)) == 3
    renamed = {"source": "mixture", "sources": {"a": PROSE, "b": NOISE}, "weights": {"a": 0.7, "b": 0.3}}
    assert plan_of(values() | {"data": renamed}, folder).runs[0].run_id == ids[0]


def test_all_sources_are_prepared(folder, tmp_path):
    plan = replace(plan_of(values(), folder), folder=tmp_path)
    assert [manifest.num_tokens for manifest in prepare_data(plan)] == [200_000, 4000]


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (PROSE, r"^data.sources: prose and noise both hold .*corpus.txt; name it in one of the two$"),
        ({**NOISE, "paths": ["copy.txt"]}, "^data.sources: prose and noise hold the same content"),
        (
            {**NOISE, "tokenizer": "tok.json"},
            "^data.sources: the ids of prose are bytes, and those of noise are through",
        ),
        ({**NOISE, "paths": ["gone.txt"]}, "^data.sources.noise: data.paths: .*gone.txt: no such file"),
        ({**NOISE, "heldout_tokens": 4000}, "^data.sources.noise: data: 4000 tokens less 4000 held out leave 0"),
        ({**NOISE, "heldout_tokens": 10}, "^data.sources.noise: data.heldout_tokens: 10 tokens do not hold"),
    ],
)
def test_sources_that_do_not_go_together_are_refused_in_one_line(noise, words, folder):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(folder / "tok.json"))
    write_bytes_corpus(folder / "copy.txt")
    data = MIXED | {"sources": {"prose": PROSE, "noise": noise}}
    with pytest.raises(DataError, match=words) as caught:
        plan_of(values() | {"data": data}, folder)
    assert "\n" not in str(caught.value)


def test_a_heldout_set_that_a_source_is_trained_on_is_refused(folder):
    with pytest.raises(DataError, match=r"heldout.mine: .*noise.txt is trained on, too"):
        plan_of(values(heldout={"mine": NOISE}), folder)


def test_a_source_that_does_not_exist_yet_is_named_by_plan_and_sweep(folder, tmp_path):
    ids = {"source": "tokens", "path": "gone.bin", "num_tokens": 1e6}
    data = MIXED | {"sources": {"prose": PROSE, "noise": ids}}
    plan = plan_of(values(output_root=str(tmp_path)) | {"data": data}, folder)
    assert any("gone.bin does not exist yet" in warning for warning in plan.warnings)
    with pytest.raises(DataError, match=r"gone.bin: no such file"):
        run_sweep(plan)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": {"prose": 0.7, "noise": 0.2}}, r"data: weights add up to 0.7 \+ 0.2 = 0.9, not to 1; .*0.777778"),
        ({"weights": {"prose": 1.2, "noise": -0.2}}, "data.weights.noise: -0.2 must be greater than 0"),
        ({"weights": {"prose": 1, "noise": 0}}, "data.weights.noise: .*0 must be greater than 0"),
        ({"weights": {"prose": 1, "noise": 1e-12}}, "weights.noise: 1e-12 is less than 1e-09"),
        ({"weights": {"prose": 1}}, "weights names prose, and sources prose, noise; write one weight for each"),
        ({"sources": {"prose": PROSE}, "weights": {"prose": 1}}, "a mixture takes two sources or more"),
        ({"sources": {"prose": PROSE, "noise": MIXED}}, "data.sources.noise.source: found 'mixture'"),
    ],
)
def test_weights_that_make_no_mixture_are_refused_in_one_line(change, words):
    with pytest.raises(SpecError, match=words) as caught:
        validate_spec(values() | {"data": MIXED | change}, "test")
    assert "\n" not in str(caught.value)

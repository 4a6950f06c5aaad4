"""One rank at ZeRO-0 goes without what only several need: the same bits, in less."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flopsfit_ds.train.data.sampling import samples_of_step, samples_of_steps
from flopsfit_ds.train.mends.alone import scale_to_norm
from flopsfit_ds.train.seeding import seed_everything
from helpers.train.ranks import Layout, bench_of
from helpers.train.slow_workloads import SlowSamples

DETOURS = "helpers.train.trap_targets:train_with_every_detour"


@pytest.mark.parametrize(
    "changes",
    [
        {"training__gradient_clipping": 0.05},  # always clips
        {"training__gradient_clipping": 0.0},  # never
        {"training__frozen_parameters": ["blocks.0.*"]},
    ],
    ids=["clipped", "unclipped", "frozen"],
)
def test_losses_are_those_of_a_stock_engine_to_the_bit(server, tmp_path, changes):
    losses = []
    for name, target in (("ours", None), ("stock", DETOURS)):
        folder = tmp_path / name
        folder.mkdir()
        bench = bench_of(server, folder, Layout(0, 1, 2), **changes)
        attempt = bench.start(1e9, **({} if target is None else {"target": target}))
        assert attempt.wait() == [0], attempt.logs()
        losses.append([*attempt.losses, attempt.outcome["loss"]])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] - 0.5


def test_gradients_are_scaled_by_their_norm_over_all_and_left_alone_within_the_limit():
    gradients = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    scale_to_norm(gradients, 1.0)
    assert torch.cat([g.flatten() for g in gradients]).norm() == pytest.approx(1.0, abs=1e-5)
    assert gradients[0] / gradients[1] == pytest.approx(0.75)
    before = [g.clone() for g in gradients]
    scale_to_norm(gradients, 2.0)
    assert all(torch.equal(old, new) for old, new in zip(before, gradients, strict=True))
    broken = [torch.tensor([float("nan")]), torch.tensor([1.0])]
    scale_to_norm(broken, 1.0)
    assert broken[1].isnan()  # what is no number must not be hidden


@pytest.mark.parametrize(("first", "batch", "samples"), [(0, 2, 5000), (7, 3, 10), (123, 5000, 900)])
def test_many_steps_at_a_time_have_the_samples_that_each_has_alone(first, batch, samples):
    end = first + 5 if batch > 4096 else first + 3000
    together = samples_of_steps(first, end, batch, samples, seed=3)
    for step, found in zip(range(first, end), together, strict=True):
        if step % 97 in (first % 97, 0) or step == end - 1:
            assert np.array_equal(found, samples_of_step(step, batch, samples, seed=3)), step


def test_waiting_for_samples_is_measured(server, tmp_path):
    five_steps = {"design__points": [{"num_params": 6e3, "num_tokens": 640}]}
    shares = []
    for workload in (None, SlowSamples):
        folder = tmp_path / str(workload)
        folder.mkdir()
        observed = bench_of(server, folder, Layout(0, 1, 2), workload, **five_steps).finish().outcome["observed"]
        shares.append(observed["waited_share"])
        assert 0 < shares[-1] < 1
        if workload is not None:
            assert shares[-1] * observed["seconds"] >= 5 * 2 * 0.25  # steps, micro-batches, seconds of sleep
    assert shares[1] > shares[0]


def test_all_generators_are_seeded_as_torch_itself_seeds_them():
    torch.manual_seed(2**31 + 5)
    expected = torch.rand(3)
    seed_everything(2**31 + 5)
    assert torch.equal(torch.rand(3), expected)
    numbers = np.random.rand(3)
    seed_everything(2**31 + 5, rank=1)
    assert not torch.equal(torch.rand(3), expected)
    assert not np.array_equal(np.random.rand(3), numbers)

"""The held-out loss of a user's own loss function is what is trained, or the run is refused before its first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.base.storage import read_json
from flopsfit_ds.train.order import EXIT_FAILED
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus
from helpers.train import own_losses
from helpers.train.own_losses import workload_of_own
from helpers.train.ranks import Layout, RankServer, start

SHORT = {"design__points": [{"num_params": 6e3, "num_tokens": 2560}], "training__precision": "fp32"}


def begin(server: RankServer, folder: Path, workload, layout: Layout | None = None, **changes):
    write_bytes_corpus(folder / "corpus.txt")
    plan = plan_of(with_values(MICRO, **{**SHORT, **changes}), folder)
    return start(server, plan.runs[0], workload, folder / "run", layout or Layout())


@pytest.mark.parametrize(
    ("loss_fn", "form"),
    [(own_losses.cross_entropy, "tensor"), (own_losses.of_dataclass, "dataclass"),
     (own_losses.with_auxiliary, "auxiliary")],
)  # fmt: skip
def test_losses_of_samples_are_those_of_batches_of_one(loss_fn, form):
    workload = workload_of_own(loss_fn, form)
    model, batch = workload.build_model(False).eval(), workload.heldout_batch(np.arange(4))
    with torch.no_grad():
        workload.check_losses(model, batch)
        alone = torch.stack([workload.loss(model, workload.heldout_batch(np.array([index]))) for index in range(4)])
        found = workload.sample_losses(model, batch)
    auxiliary = 0.01 * model(batch[0])["auxiliary"] if form == "auxiliary" else 0.0
    own = 0.01 * torch.stack([model(x[None])["auxiliary"] for x in batch[0]]) if form == "auxiliary" else 0.0
    assert torch.allclose(found, alone - own + auxiliary, atol=1e-6)


@pytest.mark.parametrize(
    ("loss_fn", "form", "padded", "said"),
    [
        (own_losses.summed, "tensor", False, "mean over its samples"),
        (own_losses.contrastive, "tensor", False, "mean over its samples"),
        (own_losses.cross_entropy, "tensor", True, "mean over its samples"),
        (own_losses.cross_entropy, "flat", False, "fails on one sample of a batch of 4.*sample_loss_fn"),
    ],
)
def test_a_loss_that_is_no_mean_over_samples_is_refused(loss_fn, form, padded, said):
    workload = workload_of_own(loss_fn, form, padded)
    with pytest.raises(DataError, match=said):
        workload.check_losses(workload.build_model(False).eval(), workload.heldout_batch(np.arange(4)))


def test_the_users_own_losses_of_samples_are_taken():
    workload = workload_of_own(own_losses.contrastive, sample_loss_fn=own_losses.each_contrastive)
    model, batch = workload.build_model(False).eval(), workload.heldout_batch(np.arange(4))
    workload.check_losses(model, batch)
    assert torch.equal(workload.sample_losses(model, batch), own_losses.each_contrastive(model(batch[0]), batch[1]))
    scalar = workload_of_own(own_losses.contrastive, sample_loss_fn=own_losses.contrastive)
    with pytest.raises(DataError, match=r"one loss a sample, \[4\]; it returned \[\]"):
        scalar.check_losses(model, batch)


def test_a_users_loss_is_computed_in_fp32_under_bf16(server, tmp_path):
    workload = workload_of_own(own_losses.of_fp32_only)
    attempt = begin(server, tmp_path, workload, training__precision="bf16")
    assert attempt.wait() == [0], attempt.logs()
    assert attempt.outcome["status"] == "completed"


def losses_of(server: RankServer, folder: Path, workload, layout: Layout) -> list[float]:
    """Training losses of each step, and the held-out loss."""
    folder.mkdir()
    attempt = begin(server, folder, workload, layout)
    assert attempt.wait() == [0] * layout.world_size, attempt.logs()
    return [*attempt.losses, attempt.outcome["loss"]]


def test_a_branch_that_is_not_always_used_trains_alike_at_every_stage(server, tmp_path):
    workload = workload_of_own(own_losses.cross_entropy, model_class=own_losses.Branched, arguments=())
    expected = losses_of(server, tmp_path / "0", workload, Layout(0))
    for layout in (Layout(2, 2), Layout(3), Layout(3, offload="optimizer")):
        assert losses_of(server, tmp_path / str(layout), workload, layout) == pytest.approx(expected, abs=1e-5)


def test_ranks_draw_different_numbers_and_each_the_same_again(server, tmp_path):
    workload = workload_of_own(own_losses.cross_entropy, model_class=own_losses.Drawing, arguments=())
    alone = losses_of(server, tmp_path / "alone", workload, Layout(0))
    pair = losses_of(server, tmp_path / "pair", workload, Layout(0, 2))
    assert pair[0] != pytest.approx(alone[0], abs=1e-3)  # one number for both ranks would give the same loss
    noisy = workload_of_own(own_losses.cross_entropy, dataset=own_losses.NoisyPoints())
    first = losses_of(server, tmp_path / "noisy", noisy, Layout(0))
    assert first == losses_of(server, tmp_path / "noisy again", noisy, Layout(0))


def test_a_run_whose_loss_cannot_be_measured_fails_before_its_first_step(server, tmp_path):
    attempt = begin(server, tmp_path, workload_of_own(own_losses.summed))
    assert attempt.wait() == [EXIT_FAILED], attempt.logs()
    error = read_json(attempt.folder.attempt(1) / "error.0.json")
    assert "sample_loss_fn" in error["message"]
    assert attempt.steps_done() == 0

"""What planning sees of a user's loss, and what it makes of it: weights, one layout for all points, or a refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flopsfit_ds.base.errors import DataError, PlanError
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.study.probes.loss import look_at_loss
from flopsfit_ds.train.data.dataset import telling_batch
from helpers.study import losses
from helpers.study.losses import Bytes, LlamaLike, OwnLoss, Pairs, Tower
from helpers.study.own_model import study


def traits_of(model_class, dataset, loss_fn, sample_loss_fn=None, **arguments):
    return look_at_loss(model_class, arguments, "width", 8, telling_batch(dataset), loss_fn, sample_loss_fn).traits


def plan(model_class: type[nn.Module], **changes: object) -> SweepPlan:
    options = {
        "size_multiple_of": 8,
        "global_batch_samples": 16,
        "compute_budgets": [2e9],
        "design": {"sizes_per_budget": 2, "size_span": 4},
    }
    result = study(model_class, train=False, **(options | changes))
    assert isinstance(result, SweepPlan)
    return result


def workload_of(model_class, dataset, loss_fn, sample_loss_fn=None, arguments=(("width", 16),)):
    traits = traits_of(model_class, dataset, loss_fn, sample_loss_fn)
    return losses.workload(model_class, dataset, loss_fn, sample_loss_fn, traits, arguments)


@pytest.mark.parametrize("form", ["tensor", "output", "dictionary"])
def test_a_loss_that_wants_logits_is_handed_them(form):
    found = traits_of(LlamaLike, Bytes(), losses.of_logits, form=form)
    assert found.takes_logits == (form != "tensor")


def test_a_mean_over_unmasked_targets_is_seen_to_be_one():
    assert traits_of(LlamaLike, Bytes(masked=True), losses.of_logits).masked
    for masked in (False, True):
        found = traits_of(LlamaLike, Bytes(masked=masked), losses.of_logits)
        assert (found.counted.leaf, found.counted.start, found.counts_in_heldout) == (1, 0, True)
        assert found.depends_on_layout is None
    each = traits_of(LlamaLike, Bytes(masked=True), losses.mean_of_samples)
    assert (each.counted, each.depends_on_layout) == (None, None)


def test_layers_that_begin_at_zero_hide_nothing():
    found = traits_of(LlamaLike, Bytes(masked=True), losses.of_logits, zero_head=True)
    assert found.counted is not None


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_model_with_its_own_loss_is_measured_by_logits_sample_by_sample(shift, masked):
    workload = workload_of(OwnLoss, Bytes("own", masked, shift), losses.own)
    assert workload.traits.sample_by_sample
    torch.manual_seed(0)
    model = workload.build_model(False).eval()
    batch = workload.heldout_batch(np.arange(6))
    with torch.no_grad():
        found, weights = workload.sample_losses(model, batch), workload.heldout_weights(batch)
        logits, labels = model(batch[0]["tokens"]).logits, batch[0]["labels"]
        logits, labels = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
        expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    assert weights.tolist() == (labels != -100).sum(1).tolist()
    assert ((found * weights).sum() / weights.sum()).item() == pytest.approx(expected, abs=1e-6)


def test_a_contrastive_loss_gives_all_points_one_layout_that_is_part_of_their_identity():
    options = {"dataset": Pairs(), "loss_fn": losses.contrastive, "sample_loss_fn": losses.each_contrastive}
    options |= {"compute_budgets": [1e9], "tokens_per_sample": 1}
    held = plan(Tower, **options)
    layouts = {
        (run.placement.strategy.num_gpus, run.placement.strategy.micro_batch_size_per_gpu, run.global_batch_sequences)
        for run in held.runs
    }
    assert len(layouts) == 1
    assert all("the loss of 4 samples is" in run.layout_held for run in held.runs)
    (said,) = (warning for warning in held.warnings if "are part of their run ids" in warning)
    left_out = round(0.05 * len(Pairs())) % held.runs[0].placement.strategy.micro_batch_size_per_gpu
    assert left_out == 0 or f"; {left_out} of {round(0.05 * len(Pairs()))} held-out samples fill no" in said
    for run in held.runs:  # after an out-of-memory another stage is tried, never another layout
        others = (*run.placement.fallbacks, *run.placement.alternatives)
        splits = {(each.strategy.num_gpus, each.strategy.micro_batch_size_per_gpu) for each in others}
        assert splits <= {(run.placement.strategy.num_gpus, run.placement.strategy.micro_batch_size_per_gpu)}
    ids = [{run.run_id for run in plan(Tower, **options, placement=rules).runs}
           for rules in ({"num_gpus": [1]}, {"num_gpus": [2]}, {"max_micro_batch_size_per_gpu": 4})]  # fmt: skip
    assert ids[0].isdisjoint(ids[1] | ids[2])
    assert ids[1].isdisjoint(ids[2])
    with pytest.raises(PlanError, match=r"the mean over its samples.*sample_loss_fn"):
        plan(Tower, **(options | {"sample_loss_fn": None}))


@pytest.mark.parametrize(
    ("loss_fn", "error", "words"),
    [
        (losses.summed, PlanError, "must be a mean over samples"),
        (losses.misspelt, PlanError, r"AttributeError: .*'scores'.*\(losses.py:\d+\)"),
        (losses.misshapen, PlanError, "ValueError: Expected input batch_size"),
    ],
)
def test_what_would_fail_in_every_run_is_refused_at_planning(loss_fn, error, words):
    with pytest.raises(error, match=words):
        plan(LlamaLike, dataset=Bytes(), loss_fn=loss_fn)


def test_a_masked_dataset_is_planned_anew_and_an_unmasked_one_as_before():
    def counted_ids(loss_fn):
        return {run.run_id for run in plan(LlamaLike, dataset=Bytes(masked=True), loss_fn=loss_fn).runs}

    from flopsfit_ds.model.loss_traits import CountedEntries, LossTraits

    assert LossTraits(counted=CountedEntries(1), counts_in_heldout=True).identity() == {}
    assert LossTraits(counted=CountedEntries(1), masked=True).identity() != {}
    assert counted_ids(losses.of_logits).isdisjoint(counted_ids(losses.mean_of_samples))


def test_refusals_of_a_dataset_name_arguments_of_find_optimal():
    with pytest.raises(DataError, match="raise heldout_fraction, or give an eval_dataset"):
        plan(LlamaLike, dataset=Bytes(size=40), loss_fn=losses.of_logits, heldout_fraction=0.01)
    with pytest.raises(PlanError, match="lower global_batch_samples"):
        plan(LlamaLike, dataset=Bytes(), loss_fn=losses.of_logits, global_batch_samples=2**20)

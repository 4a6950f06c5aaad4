"""One loss for every layout: masked targets weigh alike wherever they lie, and no padded sample is counted."""

from __future__ import annotations

import pytest

from flopsfit_ds.study.probes.loss import look_at_loss
from flopsfit_ds.train.data.dataset import telling_batch
from helpers.study import losses
from helpers.study.losses import Bytes, LlamaLike, OwnLoss, Pairs, Tower
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus
from helpers.train.ranks import Layout, start

LAYOUTS = [Layout(0, 1, 8), Layout(0, 2, 2), Layout(2, 2, 4), Layout(3, 2, 1)]
MEAN_OVER_TARGETS = {
    "logits": (LlamaLike, Bytes(masked=True), losses.of_logits, None),
    "sample-loss": (LlamaLike, Bytes(masked=True), losses.of_logits, losses.each),
    "own-loss": (OwnLoss, Bytes("own", masked=True, shift=True), losses.own, None),
}


@pytest.fixture
def train(server, tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt")
    run = plan_of(with_values(MICRO, design__points=[{"num_params": 6e3, "num_tokens": 128 * 12}]), tmp_path).runs[0]

    def end(case, layout):
        model_class, dataset, loss_fn, sample_loss_fn = case
        traits = look_at_loss(model_class, {}, "width", 8, telling_batch(dataset), loss_fn, sample_loss_fn).traits
        workload = losses.workload(*case, traits)
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        attempt = start(server, run, workload, folder, layout)
        assert attempt.wait() == [0] * layout.world_size, attempt.logs()
        return [*attempt.losses, attempt.outcome["loss"]], attempt.outcome

    return end


@pytest.mark.parametrize("name", MEAN_OVER_TARGETS)
def test_masked_targets_give_one_loss_in_every_layout(train, name):
    case = MEAN_OVER_TARGETS[name]
    expected, whole = train(case, Layout())
    dataset = case[1]
    for layout in LAYOUTS if name == "logits" else LAYOUTS[1:2]:
        found, outcome = train(case, layout)
        assert found == pytest.approx(expected, abs=1e-6), layout
        assert outcome["loss_standard_error"] == pytest.approx(whole["loss_standard_error"], rel=1e-4)
        assert outcome["loss_tokens"] == whole["loss_tokens"]
    assert 0 < whole["loss_tokens"] < 13 * losses.LENGTH - (13 if dataset.shift else 0)


def test_a_micro_batch_without_a_target_weighs_nothing(train):
    expected, _whole = train((LlamaLike, losses.Sparse(), losses.of_logits, None), Layout())
    found, _outcome = train((LlamaLike, losses.Sparse(), losses.of_logits, None), Layout(0, 2, 4))
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_contrastive_held_out_loss_is_one_on_any_number_of_gpus_with_one_micro_batch(train):
    case = (Tower, Pairs(), losses.contrastive, losses.each_contrastive)
    alone, whole = train(case, Layout(0, 1, 4))
    pair, outcome = train(case, Layout(0, 2, 2))
    assert pair == pytest.approx(alone, abs=1e-6)  # micro-batches of 2 in both
    assert outcome["loss_standard_error"] == pytest.approx(whole["loss_standard_error"], rel=1e-4)

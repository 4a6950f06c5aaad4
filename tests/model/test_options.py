"""What the decoder may have beyond its plain form: each does what it says, and counts as sums by hand say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.model import head
from flopsfit_ds.model.architecture import DecoderOptions, ModelShape, shape_identity
from flopsfit_ds.model.flops import training_flops_per_token
from flopsfit_ds.train.data.tokens import TokenWorkload, language_model_loss
from flopsfit_ds.train.model.cross_entropy import plain_losses
from flopsfit_ds.train.model.decoder import Decoder
from helpers.sweeps import MICRO, plan_of, spec_of, with_values

PLAIN = ModelShape(3, 32, 4, 2, 40, 100, 16)
TOKENS = torch.arange(32).view(2, 16) * 7 % 100
EVERYTHING = DecoderOptions(True, "gelu", True, "learned", 30.0, 1e-4)


def decoder(**options: object) -> Decoder:
    torch.manual_seed(0)
    return Decoder(replace(PLAIN, options=DecoderOptions(**options)))  # pyright: ignore[reportArgumentType]


def test_parameters_and_flops_are_sums_by_hand():
    shape = replace(PLAIN, options=EVERYTHING)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 2 * 32 * 40  # query and output, key and value, two of the feed-forward layer
    norms = 2 * 32 + 2 * 8  # of the layer's two branches, of the queries and keys of any head
    assert shape.parameters.non_embedding == 3 * (layer + norms) + 32
    assert shape.parameters.total == 3 * (layer + norms) + 32 + 2 * 100 * 32 + 16 * 32
    assert training_flops_per_token(shape) == 6 * (3 * layer + 100 * 32) + 3 * 3 * 4 * 16 * 32
    assert replace(PLAIN, options=DecoderOptions(qk_norm=True)).parameters.total == PLAIN.parameters.total + 3 * 16
    gelu = replace(PLAIN, options=DecoderOptions(activation="gelu"))
    assert PLAIN.parameters.mlp - gelu.parameters.mlp == 3 * 32 * 40
    assert training_flops_per_token(PLAIN) - training_flops_per_token(gelu) == 6 * 3 * 32 * 40


def test_normed_queries_and_keys_do_not_care_how_large_they_were():
    for options, differ in (({"qk_norm": True}, False), ({}, True)):
        model = decoder(**options)
        with torch.no_grad():
            before = model(TOKENS)
            for name, parameter in model.named_parameters():
                if ".query.weight" in name or ".key.weight" in name:
                    parameter.mul_(10)
            assert differ == (float((model(TOKENS) - before).abs().max()) > 1e-3)


def test_every_head_is_normed_by_itself():
    model = decoder(qk_norm=True)
    attention = model.blocks[0].attention
    normed = attention.query_norm(attention.query(torch.randn(5, 32)).view(5, 4, 8))
    torch.testing.assert_close(normed.square().mean(-1), torch.ones(5, 4), rtol=1e-3, atol=1e-3)


def test_the_plain_layer_is_gelu_between_two_matrices():
    layer, x = decoder(activation="gelu").blocks[0].mlp, torch.randn(4, 32)
    inner = x @ layer.up.weight.T
    by_hand = (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), by_hand)


def test_branches_are_drawn_by_their_own_depth():
    torch.manual_seed(0)
    wide = ModelShape(4, 256, 4, 4, 256, 8, 4, options=DecoderOptions(depth_scaled_init=True))
    for depth, block in enumerate(Decoder(wide).blocks, start=1):
        for weight in (block.attention.output.weight, block.mlp.down.weight):
            assert float(weight.detach().std()) == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.03)


def test_learned_positions_are_added_to_tokens():
    """A model without any positions gives one answer wherever a token that is alone in its past stands."""
    model = decoder(positions="learned")
    same = torch.full((1, 16), 3)
    assert float(model(same)[0].diff(dim=0).abs().max()) > 1e-2
    with torch.no_grad():
        model.positions.position_embedding.zero_()
    torch.testing.assert_close(model(same)[0, 0], model(same)[0, -1])


def test_capped_logits_stay_below_and_keep_their_order():
    model, plain = decoder(logit_softcap=0.05), decoder()
    torch.testing.assert_close(model(TOKENS), 0.05 * torch.tanh(plain(TOKENS) / 0.05))
    assert float(model(TOKENS).abs().max()) < 0.05 < float(plain(TOKENS).abs().max())


@pytest.mark.parametrize("by_chunks", [False, True])
def test_z_loss_is_trained_on_and_not_measured(monkeypatch, by_chunks):
    shape = replace(PLAIN, options=DecoderOptions(z_loss_weight=0.5))
    model, targets = decoder(z_loss_weight=0.5), TOKENS.roll(1)
    if by_chunks:
        monkeypatch.setattr(head, "LOGITS_AT_ONCE", 700)
    logits = model(TOKENS)
    entropy, log_sums = F.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits.logsumexp(-1)
    trained = language_model_loss(shape, model, (TOKENS, targets))
    torch.testing.assert_close(trained, entropy + 0.5 * log_sums.square().mean())
    workload = TokenWorkload.__new__(TokenWorkload)
    object.__setattr__(workload, "shape", shape)
    measured = workload.sample_losses(model, (TOKENS, targets)).mean()
    torch.testing.assert_close(measured, entropy)
    torch.testing.assert_close(measured, plain_losses(logits, targets).mean())


def test_what_is_off_leaves_ids_as_they_were(corpus_folder):
    """The identity has options only where they are on, and then those alone."""
    assert "options" not in shape_identity(PLAIN)
    assert shape_identity(replace(PLAIN, options=DecoderOptions(qk_norm=True)))["options"] == {"qk_norm": True}
    said = {"model__qk_norm": False, "model__activation": "swiglu", "model__positions": "rotary"}
    plain = plan_of(MICRO, corpus_folder).runs[0]
    assert plan_of(with_values(MICRO, **said), corpus_folder).runs[0].run_id == plain.run_id
    for change in ({"qk_norm": True}, {"depth_scaled_init": True}, {"logit_softcap": 30}, {"z_loss_weight": 1e-4}):
        values = with_values(MICRO, **{f"model__{name}": value for name, value in change.items()})
        assert plan_of(values, corpus_folder).runs[0].run_id != plain.run_id


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model__head_dim": 7}, "positions: learned"),
        ({"model__positions": "learned", "model__rope_base": 500}, "rope_base says nothing to positions: learned"),
    ],
)
def test_what_contradicts_is_refused(change, told):
    with pytest.raises(SpecError, match=told):
        spec_of(with_values(MICRO, **change))


def test_heads_of_odd_width_do_with_learned_positions(corpus_folder):
    run = plan_of(with_values(MICRO, model__head_dim=7, model__positions="learned"), corpus_folder).runs[0]
    assert isinstance(run.model, ModelShape)
    assert np.isfinite(Decoder(run.model)(torch.zeros(1, 16, dtype=torch.int64)).detach().numpy()).all()

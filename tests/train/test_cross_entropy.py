"""The loss by chunks is the plain loss: alone, and in engines of every stage; and it never holds all logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flopsfit_ds.model import head
from flopsfit_ds.train.model import cross_entropy
from flopsfit_ds.train.model.cross_entropy import LossRules
from helpers.train.layout_models import ChunkedWorkload
from helpers.train.ranks import Layout, bench_of


@pytest.mark.parametrize("tokens_at_once", [1, 7, 64])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rules", [LossRules(), LossRules(3.0), LossRules(0.0, 0.01), LossRules(3.0, 0.01)], ids=str)
def test_losses_and_gradients_are_the_plain_ones(monkeypatch, tokens_at_once, precision, rules):
    vocab = 500
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", tokens_at_once * vocab)
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 50, 48, generator=draws, requires_grad=True)
    weight = (0.3 * torch.randn(vocab, 48, generator=draws)).requires_grad_()
    targets = torch.randint(0, vocab, (2, 50), generator=draws)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = cross_entropy.capped(F.linear(hidden, weight), rules.logit_softcap)
        plain = cross_entropy.plain_losses(logits, targets, rules.z_loss_weight)
        measured = cross_entropy.plain_losses(logits, targets)
        chunked = cross_entropy.mean_loss(hidden, weight, targets, rules)
        each = cross_entropy.token_losses(hidden, weight, targets, rules)
    torch.testing.assert_close(each, measured, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(chunked, plain.mean(), rtol=1e-6, atol=1e-6)
    expected = torch.autograd.grad(3 * plain.mean(), (hidden, weight))
    found = torch.autograd.grad(3 * chunked, (hidden, weight))
    for here, there in zip(found, expected, strict=True):
        assert here.dtype == torch.float32
        limit = 1e-5 if precision == "fp32" else 1e-2  # each product in bf16 is rounded to three digits
        assert float((here - there).abs().max()) <= limit * float(there.abs().max())


def test_a_frozen_head_costs_no_gradient(monkeypatch):
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 100)
    hidden, weight = torch.randn(1, 9, 4, requires_grad=True), torch.randn(50, 4)
    cross_entropy.mean_loss(hidden, weight, torch.zeros(1, 9, dtype=torch.int64)).backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert float(hidden.grad.abs().max()) > 0


@pytest.mark.parametrize("tied", [True, False])
def test_engines_train_alike_by_chunks(server, tmp_path, tied):
    layouts = (Layout(0, 1, 2), Layout(2, 2, 2), Layout(3, 2, 2))
    points = [{"num_params": 6e3, "num_tokens": 128 * 15}]
    changes = {"model__tied_embeddings": tied, "design__points": points}
    (tmp_path / "plain").mkdir()
    plain = bench_of(server, tmp_path / "plain", layouts[0], **changes).finish()
    for layout in layouts:
        folder = tmp_path / f"stage-{layout.zero_stage}"
        folder.mkdir()
        chunked = bench_of(server, folder, layout, ChunkedWorkload, **changes).finish()
        largest = max(abs(a - b) for a, b in zip(chunked.losses, plain.losses, strict=True))
        assert 0 < largest <= 1e-5, layout  # zero would mean that nothing was chunked
        assert abs(chunked.outcome["loss"] - plain.outcome["loss"]) <= 1e-5

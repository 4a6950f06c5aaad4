"""Weights are cast to bf16 once an optimiser step: fewer copies, the same bits, gradients in the same order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flopsfit_ds.model import head
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.train.data.tokens import language_model_loss
from flopsfit_ds.train.model.casts import kept_casts
from flopsfit_ds.train.model.decoder import Decoder
from helpers.train.ranks import Layout, bench_of

SHAPE = ModelShape(2, 32, 2, 1, 88, 64, 16)
MICRO_BATCHES, STEPS = 3, 2
EACH_TIME = "helpers.train.trap_targets:train_casting_each_time"
BF16 = {"training__precision": "bf16", "training__learning_rates": [3e-3]}


class CastsOfWeights(TorchDispatchMode):
    """Counts copies of a model's parameters in another type."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._weights = {parameter.data_ptr() for parameter in model.parameters()}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self._weights:
            self.count += 1
        return func(*args, **(kwargs or {}))


def trained(shape: ModelShape, layout: dict[str, Any], frozen: str = "") -> tuple[list[Any], int]:
    """Losses, order of gradients and weights of a few steps, and how often a weight was cast."""
    torch.manual_seed(0)
    model, seen = Decoder(shape, layout["activation_checkpointing"]), []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(name))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    casts, counted = kept_casts(model, "bf16", **layout), CastsOfWeights(model)
    draws = torch.Generator().manual_seed(0)
    with counted:
        for _ in range(STEPS):
            if casts is not None:
                casts.make()
            for number in range(MICRO_BATCHES):
                ids = torch.randint(shape.vocab_size, (2, 17), generator=draws)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = language_model_loss(shape, model, (ids[:, :-1], ids[:, 1:]))
                if casts is not None and number == MICRO_BATCHES - 1:
                    casts.drop()
                loss.backward()
                seen.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
    return [*seen, *(parameter.detach().tolist() for parameter in model.parameters())], counted.count


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("logits_at_once", [head.LOGITS_AT_ONCE, 256], ids=["plain", "chunked"])
@pytest.mark.parametrize("frozen", ["", "blocks.0"])
def test_weights_are_cast_once_a_step_with_the_same_bits_in_the_same_order(monkeypatch, tied, logits_at_once, frozen):
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", logits_at_once)
    shape = ModelShape(**{**vars(SHAPE), "tied_embeddings": tied})
    once = {"zero_stage": 0, "accumulation": MICRO_BATCHES, "activation_checkpointing": False}
    kept, few = trained(shape, once, frozen)
    plain, many = trained(shape, {**once, "zero_stage": 3}, frozen)
    assert kept == plain
    blocks = 7 * (1 if frozen else 2)
    assert many - few == (blocks + 1) * STEPS * (MICRO_BATCHES - 1)  # of trained weights, the head's among them


@pytest.mark.parametrize(
    "change",
    [{"zero_stage": 3}, {"accumulation": 1}, {"activation_checkpointing": True}],
    ids=lambda change: next(iter(change)),
)
def test_copies_are_not_kept_where_that_would_cost_memory_or_save_nothing(change):
    layout = {"zero_stage": 2, "accumulation": 2, "activation_checkpointing": False}
    assert kept_casts(Decoder(SHAPE), "bf16", **layout) is not None
    assert kept_casts(Decoder(SHAPE), "bf16", **{**layout, **change}) is None
    assert kept_casts(Decoder(SHAPE), "fp32", **layout) is None
    assert kept_casts(torch.nn.Linear(2, 2), "bf16", **layout) is None


@pytest.mark.parametrize("layout", [Layout(0, 1, 2), pytest.param(Layout(2, 2, 2), marks=pytest.mark.slow)], ids=str)
def test_losses_of_runs_are_the_same_to_the_bit(server, tmp_path, layout):
    losses = []
    for name, target in (("once", None), ("each time", EACH_TIME)):
        folder = tmp_path / name
        folder.mkdir()
        attempt = bench_of(server, folder, layout, **BF16).start(1e9, **({} if target is None else {"target": target}))
        assert attempt.wait() == [0] * layout.world_size, attempt.logs()
        losses.append([*attempt.losses, attempt.outcome["loss"]])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] - 0.5

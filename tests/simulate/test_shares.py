"""What is counted of stacks of matrices, of attention that is computed again, and of heads that do not go together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flopsfit_ds.simulate.profile import ClassMeasurement, profile_class
from helpers.study.foreign_models import CONTEXT, EXPERTS, FOREIGN, TOKENS, VOCAB, FromLibrary, shape, token_loss
from helpers.study.frozen_experts import NAME

WIDTH = 64


def measured(model_class: type[nn.Module]) -> ClassMeasurement:
    return profile_class(
        model_class, {"width": WIDTH}, samples=TOKENS, precision="fp32", tokens_per_sample=CONTEXT,
        loss=lambda model, batch: token_loss(model(batch[0]), batch[1]),
    )  # fmt: skip


class Attending(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(VOCAB, width), nn.Linear(width, width)
        self.head = nn.Linear(width, VOCAB)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.layer(x).unflatten(-1, (4, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.attend(self.embedding(tokens)))


class AttendingAgain(Attending):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        kept: Any = checkpoint(self.attend, self.embedding(tokens), use_reentrant=False)
        return self.head(kept)


def test_attention_that_is_computed_again_counts_once() -> None:
    assert measured(AttendingAgain).flops_per_sample == measured(Attending).flops_per_sample


class ThreeOfFour(FromLibrary):
    """Transformers builds it without a word; the real operation refuses it."""

    def build(self, width: int) -> nn.Module:
        return hf.LlamaForCausalLM(hf.LlamaConfig(**shape(width, num_key_value_heads=3)))


def test_heads_that_do_not_go_together_are_no_number() -> None:
    found = measured(ThreeOfFour)
    assert found.flops_per_sample is None
    assert "attention of 4 heads of queries and 3 of keys" in (found.problem or "")


class Looped(FromLibrary):
    """Experts are taken one after the other from a stack of their matrices."""

    def build(self, width: int) -> nn.Module:
        config = shape(width, num_local_experts=EXPERTS, num_experts_per_tok=2, experts_implementation="eager")
        return hf.MixtralForCausalLM(hf.MixtralConfig(**config))


def test_experts_looped_over_a_stack_of_matrices_are_active_by_their_share() -> None:
    foreign, found = FOREIGN["Mixtral"], measured(Looped)
    assert found.num_params_active == found.num_params - foreign.idle(WIDTH)
    assert found.flops_per_sample == pytest.approx(3 * foreign.forward(WIDTH), rel=0.01)


def test_experts_behind_frozen_layers_are_counted_as_by_hand() -> None:
    foreign, found = FOREIGN[NAME], measured(FOREIGN[NAME].model_class)
    by_hand = 3 * foreign.forward(WIDTH) - foreign.spared(WIDTH)
    assert found.flops_per_sample == pytest.approx(by_hand, rel=0.01)
    assert found.num_params_trainable == LAYERS_OF_EXPERTS


LAYERS_OF_EXPERTS = 2 * EXPERTS * 6 * WIDTH**2


class Stacked(nn.Module):
    """Layers in a stack, and one that nothing makes use of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB, width), nn.Linear(width, VOCAB)
        self.layers, self.idle = nn.Parameter(torch.randn(3, width, width)), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = torch.tanh(x @ layer)
        return self.head(x)


def test_a_stack_of_layers_is_active_as_a_whole_and_what_gets_no_gradient_is_named() -> None:
    found = measured(Stacked)
    assert found.num_params_active == found.num_params
    assert found.untrained == ("idle.weight", "idle.bias")
    assert measured(FOREIGN["expert blocks"].model_class).untrained == ()
    assert measured(FOREIGN["low rank"].model_class).untrained == ()

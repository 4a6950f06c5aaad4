"""What a look at a model without weights counts, held to counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from flopsfit_ds.simulate.profile import ClassMeasurement, profile_class
from flopsfit_ds.train.data.dataset import call_model
from helpers.study.drawn_models import Drawn
from helpers.study.foreign_models import (
    CONTEXT,
    EXPERTS,
    FOREIGN,
    TOKENS,
    VOCAB,
    ExpertBlocks,
    Foreign,
    LoopedExperts,
    Mixtral,
    token_loss,
)

WIDTH = 64


def measured(foreign: Foreign, width: int = WIDTH, **more: Any) -> ClassMeasurement:
    return profile_class(
        foreign.model_class,
        {"width": width},
        samples=foreign.batch,
        loss=lambda model, batch: foreign.loss(call_model(model, batch[0]), batch[1]),
        precision="fp32",
        tokens_per_sample=foreign.tokens,
        **more,
    )


@pytest.mark.parametrize("name", FOREIGN)
def test_flops_and_parameters_are_those_by_hand(name: str) -> None:
    foreign = FOREIGN[name]
    found = measured(foreign)
    assert found.problem is None
    by_hand = 3 * foreign.forward(WIDTH) - foreign.spared(WIDTH)
    assert found.flops_per_sample == pytest.approx(by_hand, rel=0.01)
    sizes = [parameter.numel() for parameter in foreign.model_class(WIDTH).parameters()]
    assert found.num_params == sum(sizes)
    assert found.num_params_active == pytest.approx(sum(sizes) - foreign.idle(WIDTH), rel=1e-3)
    assert found.profile.block_saved_bytes > 0


def wrapped(forward: Any) -> Foreign:
    """A layer, what `forward` makes of its output, and a head."""

    class Wrapped(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embedding, self.layer = nn.Embedding(VOCAB, width), nn.Linear(width, width)
            self.head = nn.Linear(width, VOCAB)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(forward(self.layer(self.embedding(tokens)), self))

    return Foreign(Wrapped, TOKENS, token_loss, CONTEXT, lambda w: CONTEXT * 2 * (w * w + w * VOCAB))


def attended(mask: torch.Tensor) -> Any:
    return lambda x, module: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=mask)[:, 0]


@pytest.mark.parametrize(("window", "keys"), [(CONTEXT, CONTEXT), (10, 10)])
@pytest.mark.parametrize("additive", [False, True])
def test_a_masks_window_is_what_attention_is_counted_over(window: int, keys: int, additive: bool) -> None:
    seen = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril().triu(1 - window)
    mask = torch.zeros(CONTEXT, CONTEXT).masked_fill(~seen, float("-inf")) if additive else seen
    foreign = wrapped(attended(mask))
    by_hand = 3 * (foreign.forward(WIDTH) + 4 * CONTEXT * keys * WIDTH)
    assert measured(foreign).flops_per_sample == by_hand


def test_a_matrix_times_single_vectors_costs_what_it_costs_times_all_of_them() -> None:
    def singly(x: torch.Tensor, module: Any) -> torch.Tensor:
        return torch.stack([module.layer.weight.mv(row) for row in x.flatten(0, 1)]).view_as(x)

    together = measured(wrapped(lambda x, module: x @ module.layer.weight.T)).flops_per_sample
    assert measured(wrapped(singly)).flops_per_sample == together == 3 * CONTEXT * 2 * (2 * WIDTH**2 + WIDTH * VOCAB)


def test_a_mask_that_changes_between_layers_is_looked_at_again() -> None:
    """Three calls: all keys, two of them after a write into the same mask, and a view of it with all again."""

    def forward(changes: bool) -> Any:
        def attend(x: torch.Tensor, module: Any) -> torch.Tensor:
            mask = torch.ones(2 * CONTEXT, CONTEXT, dtype=torch.bool)
            first, last = mask[:CONTEXT], mask[CONTEXT:]
            x = attended(first)(x, module)
            if changes:
                first[:, 2:] = False
            return attended(last)(attended(first)(x, module), module)

        return attend

    one = measured(wrapped(attended(torch.ones(CONTEXT, CONTEXT, dtype=torch.bool)))).flops_per_sample
    none = measured(wrapped(lambda x, module: x)).flops_per_sample
    assert one is not None
    assert none is not None
    call = one - none
    assert measured(wrapped(forward(changes=False))).flops_per_sample == none + 3 * call
    assert measured(wrapped(forward(changes=True))).flops_per_sample == none + 2 * call + call * 2 // CONTEXT


def test_a_mask_that_weights_decide_is_said_to_be_unknown() -> None:
    foreign = wrapped(lambda x, module: attended(module.layer.weight[:CONTEXT, :CONTEXT] > 0)(x, module))
    assert measured(foreign).unknown_masks
    assert not measured(wrapped(attended(torch.ones(CONTEXT, CONTEXT, dtype=torch.bool)))).unknown_masks


def test_a_sum_over_an_outer_product_counts_as_the_matrix_product_that_it_is() -> None:
    spread = wrapped(lambda x, module: (x[..., None] * module.layer.weight).sum(-2))
    product = wrapped(lambda x, module: x @ module.layer.weight)
    assert measured(spread).flops_per_sample == measured(product).flops_per_sample


def test_recomputation_is_not_counted() -> None:
    from torch.utils.checkpoint import checkpoint

    def block(x: torch.Tensor, module: Any) -> torch.Tensor:
        return module.layer(F.gelu(module.layer(x)))

    again = wrapped(lambda x, module: checkpoint(block, x, module, use_reentrant=False))
    once = wrapped(block)
    assert measured(again).flops_per_sample == measured(once).flops_per_sample
    assert measured(again).profile.block_saved_bytes < measured(once).profile.block_saved_bytes


def test_what_hides_its_products_is_no_number() -> None:
    class Hidden(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embedding, self.wide = nn.Embedding(VOCAB, width), nn.Parameter(torch.randn(8 * width, width))
            self.head = nn.Linear(width, VOCAB)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embedding(tokens)
            return self.head(x + torch.cdist(x, self.wide[None]).mean(-1, keepdim=True))

    found = measured(Foreign(Hidden, TOKENS, token_loss, CONTEXT, lambda w: 0), width=512)
    assert found.flops_per_sample is None
    assert found.problem is not None
    assert "wide" in found.problem


def test_a_decision_by_a_weights_value_is_a_problem_and_a_routers_choice_is_none() -> None:
    decided = measured(wrapped(lambda x, module: x if float(x.detach().sum()) > 0 else 2 * x))
    assert decided.flops_per_sample is None
    assert decided.problem is not None
    looped = measured(FOREIGN["looped experts"])
    assert looped.problem is None
    assert any(name.startswith("experts.7") for name in looped.uneven)
    assert not any(name.startswith(("router", "experts.0", "head")) for name in looped.uneven)
    assert not measured(FOREIGN["Mixtral"]).uneven


@pytest.mark.parametrize("name", ["expert blocks", "hashed experts"])
def test_modules_around_experts_are_found_whatever_sends_tokens_to_them(name: str) -> None:
    """A router's weights, or the tokens' own values."""
    found = measured(FOREIGN[name])
    assert len(found.uneven) == 2 * (EXPERTS - 1) * 4
    assert found.leaves == found.profile.leaf_modules == ("blocks.0", "blocks.1")
    of_a_block = (found.num_params - found.num_params_embedding) // 2
    assert found.profile.block_largest_params == pytest.approx(of_a_block, rel=0.05)  # gathered as one


@pytest.mark.slow
def test_experts_of_transformers_that_are_modules_are_found() -> None:
    foreign = FOREIGN["Switch"]
    found = measured(foreign)
    assert all(name.endswith("mlp.experts") for name in found.leaves)
    assert len(found.leaves) == 2  # one layer of the encoder, one of the decoder
    assert found.num_params_active == found.num_params - foreign.idle(WIDTH)


class Named(ExpertBlocks):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x=x)
        return self.head(x)


class Twice(ExpertBlocks):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.blocks(self.embedding(tokens))))


class Shared(ExpertBlocks):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.blocks[1].experts = self.blocks[0].experts


class FrozenInFront(ExpertBlocks):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.embedding.requires_grad_(False)


@pytest.mark.parametrize("model_class", [LoopedExperts, Named, Twice, Shared, FrozenInFront])
def test_experts_whose_gradients_zero_3_would_reduce_too_early_are_in_no_leaf(model_class: type[nn.Module]) -> None:
    """It waits for the gradient of a module's input: once, of an argument by position."""
    found = measured(Foreign(model_class, TOKENS, token_loss, CONTEXT, lambda w: 0))
    assert found.uneven
    assert found.leaves == ()


def test_the_same_masks_are_known_as_the_classes_grow() -> None:
    for foreign, model_class in ((FOREIGN["Mixtral"], Mixtral), (FOREIGN["looped experts"], LoopedExperts)):
        assert foreign.model_class is model_class
        assert measured(foreign, 128).flops_per_sample == pytest.approx(3 * foreign.forward(128), rel=0.01)


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.sampled_from([5, 40, CONTEXT]), st.sampled_from([4, 8]),
    st.sampled_from([1, 2]), st.booleans(),
)  # fmt: skip
def test_drawn_models_are_counted_as_by_hand(
    share: int, groups: int, window: int, experts: int, chosen: int, tied: bool
) -> None:
    arguments: dict[str, Any] = {
        "width": WIDTH, "heads": share * groups, "groups": groups, "window": window, "experts": experts,
        "chosen": chosen, "tied": tied,
    }  # fmt: skip
    found = profile_class(
        Drawn, arguments, samples=TOKENS, precision="fp32", tokens_per_sample=CONTEXT,
        loss=lambda model, batch: token_loss(model(batch[0]), batch[1]),
    )  # fmt: skip
    matrices = 2 * WIDTH**2 + 2 * WIDTH**2 // share + WIDTH * experts + chosen * WIDTH**2 + WIDTH * VOCAB
    forward = CONTEXT * (2 * matrices + 4 * window * WIDTH)
    assert found.flops_per_sample == pytest.approx(3 * forward - CONTEXT * 2 * WIDTH**2, rel=0.01)
    module = Drawn(**arguments)
    assert found.num_params == sum(parameter.numel() for parameter in module.parameters())
    assert found.num_params_trainable == found.num_params - WIDTH**2 - WIDTH
    assert found.num_params_active == found.num_params - (experts - chosen) * WIDTH**2
    assert not found.uneven

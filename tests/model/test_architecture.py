"""Shapes: the analytic counts are those of the built module, and sizes are met."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.model.architecture import ModelShape, SizingRule
from flopsfit_ds.train.model.decoder import Decoder
from helpers.shapes import built, shapes

RULE = SizingRule(
    head_dim=16,
    width_per_layer=32,
    mlp_ratio=8 / 3,
    mlp_multiple_of=8,
    query_heads_per_kv_head=1,
    vocab_size=256,
    context_length=64,
    tied_embeddings=False,
    rope_base=10000.0,
)


@settings(max_examples=25)
@given(shapes())
def test_analytic_counts_and_names_are_those_of_the_built_module(shape):
    module = built(shape)
    named = {name: parameter.numel() for name, parameter in module.named_parameters()}
    assert dict(shape.tensors()) == named
    counts = shape.parameters
    assert counts.total == sum(named.values())
    tables = {"embedding.weight", "head.weight", "positions.position_embedding"}
    assert counts.non_embedding == sum(size for name, size in named.items() if name not in tables)
    assert counts.attention == sum(size for name, size in named.items() if ".attention." in name and "norm" not in name)
    assert counts.mlp == sum(size for name, size in named.items() if ".mlp." in name)
    assert counts.norm == sum(size for name, size in named.items() if "norm" in name)


@settings(max_examples=20)
@given(shapes())
def test_the_module_maps_tokens_to_logits_and_sees_no_future(shape):
    torch.manual_seed(0)
    module = Decoder(shape).eval()
    tokens = torch.randint(shape.vocab_size, (2, shape.context_length))
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % shape.vocab_size
    with torch.no_grad():
        logits, others = module(tokens), module(changed)
    assert logits.shape == (2, shape.context_length, shape.vocab_size)
    torch.testing.assert_close(logits[:, :-1], others[:, :-1])


@pytest.mark.parametrize("field", ["rope_base", "tied_embeddings"])
def test_settings_without_parameters_of_their_own_still_change_the_module(field):
    shape = ModelShape(2, 32, 4, 2, 64, 100, 16)
    other = dataclasses.replace(shape, **{field: {"rope_base": 100.0, "tied_embeddings": True}[field]})
    logits = []
    for each in (shape, other):
        torch.manual_seed(0)
        logits.append(Decoder(each)(torch.arange(16)[None]))
    assert not torch.allclose(*logits)


def test_checkpointed_blocks_give_the_same_gradients():
    shape = ModelShape(2, 32, 4, 2, 64, 100, 16)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        module = Decoder(shape, checkpointing)
        module(torch.arange(16)[None]).square().mean().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


class TestSizes:
    @given(st.floats(min_value=math.log(3e4), max_value=math.log(7e10)))
    def test_the_nearest_shape_is_near(self, log_size):
        shape = RULE.nearest(math.exp(log_size))
        total = shape.parameters.total
        # small models move in coarse steps: one head more, one layer more
        assert abs(math.log(total) - log_size) < (0.35 if total < 1e6 else 0.1)

    @given(st.floats(min_value=math.log(1e6), max_value=math.log(7e10)))
    def test_the_ratio_of_width_to_depth_stays_near_the_aimed_one(self, log_size):
        shape = RULE.nearest(math.exp(log_size))
        ratio = shape.hidden_size / shape.num_layers / RULE.width_per_layer
        if shape.num_layers < 256:  # at three or four layers one more is a large step
            assert 0.6 < ratio < (1.9 if shape.num_layers < 5 else 1.7)

    def test_no_other_shape_of_the_ladder_is_better(self):
        """Against a search through all shapes near the aimed ratio."""
        for size in (1e5, 3.3e5, 1e6, 1.7e7, 2e8):
            chosen = RULE.nearest(size)

            def score(shape: ModelShape, size: float = size) -> float:
                aimed = shape.hidden_size / RULE.width_per_layer
                return abs(math.log(shape.parameters.total / size)) + 0.1 * abs(math.log(aimed / shape.num_layers))

            everything = [
                RULE.shape(layers, width)
                for width in range(16, 64 * 16 + 1, 16)
                for layers in range(
                    max(1, math.floor(width / 32 / math.sqrt(2))), math.ceil(width / 32 * math.sqrt(2)) + 1
                )
            ]
            assert score(chosen) == pytest.approx(min(score(shape) for shape in everything), abs=1e-12)

    def test_a_taken_size_is_passed_over(self):
        first = RULE.nearest(1e6)
        second = RULE.nearest(1e6, {first.parameters.total})
        assert second.parameters.total != first.parameters.total

    def test_a_size_that_is_three_times_below_the_smallest_is_an_error(self):
        smallest = RULE.nearest(1e3 * RULE.vocab_size)
        while (smaller := RULE.nearest(0.6 * smallest.parameters.total)) != smallest:
            smallest = smaller
        with pytest.raises(PlanError, match="no model of this family"):
            RULE.nearest(smallest.parameters.total / 3)

    @pytest.mark.parametrize("size", [100, 1e14])
    def test_a_size_that_the_family_does_not_have_is_an_error_with_the_nearest(self, size):
        with pytest.raises(PlanError, match=r"no model of this family has about .* the nearest has .* layers"):
            RULE.nearest(size)

    def test_grouped_queries_and_the_mlps_rounding_hold_at_every_size(self):
        rule = dataclasses.replace(RULE, query_heads_per_kv_head=4, mlp_multiple_of=64)
        for size in (1e6, 1e7, 1e9):
            shape = rule.nearest(size)
            assert shape.num_heads == 4 * shape.num_kv_heads
            assert shape.head_dim == 16
            assert shape.intermediate_size % 64 == 0
            assert 0 <= shape.intermediate_size - shape.hidden_size * 8 / 3 < 64

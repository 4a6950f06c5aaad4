"""The analytic FLOPs are exactly those that PyTorch's own counter sees in the built module."""

from __future__ import annotations

import dataclasses
import fnmatch

import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.model.flops import (
    conventional_flops,
    forward_flops_per_token,
    model_flops_utilisation,
    training_flops_per_token,
)
from flopsfit_ds.train.model.cross_entropy import plain_losses
from flopsfit_ds.train.model.decoder import Decoder
from flopsfit_ds.train.session import freeze
from helpers.shapes import built, shapes
from helpers.sweeps import MICRO, plan_of, with_values


def counted(module: Decoder, shape: ModelShape, backward: bool) -> int:
    tokens = torch.zeros((1, shape.context_length), dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        loss = plain_losses(module(tokens), tokens).mean()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@settings(max_examples=10)
@given(shapes())
def test_training_flops_are_exactly_those_that_torch_counts(shape):
    """On the meta device attention is taken apart into matrix products, so that the counter sees every one.

    Of sliding windows it counts the pairs that are masked, too; these are added by hand.
    """
    masked = 4 * shape.hidden_size * sum(shape.context_length - window for window in shape.windows)
    forward, whole = forward_flops_per_token(shape) + masked, training_flops_per_token(shape) + 3 * masked
    assert counted(built(shape), shape, backward=False) == shape.context_length * forward
    assert counted(built(shape), shape, backward=True) == shape.context_length * whole


def test_grouped_queries_save_the_projections_and_nothing_else():
    whole = ModelShape(2, 64, 8, 8, 128, 100, 32)
    grouped = dataclasses.replace(whole, num_kv_heads=2)
    saved = whole.parameters.total - grouped.parameters.total
    assert training_flops_per_token(whole) - training_flops_per_token(grouped) == 6 * saved


@pytest.mark.parametrize("patterns", [(), ("blocks.0.*",), ("*.mlp.*", "norm.weight"), ("head.weight",)])
def test_frozen_parameters_cost_no_weight_gradients(patterns, corpus_folder):
    values = with_values(MICRO, model__tied_embeddings=False, training__frozen_parameters=list(patterns))
    run = plan_of(values, corpus_folder).runs[0]
    assert isinstance(run.model, ModelShape)
    module = built(run.model)
    freeze(module, patterns)
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    assert run.num_params_trainable == trainable
    frozen = [
        parameter.numel()
        for name, parameter in module.named_parameters()
        if parameter.dim() == 2 and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]
    assert run.flops / run.num_tokens == 3 * forward_flops_per_token(run.model) - 2 * sum(frozen)


def test_the_convention_is_six_a_parameter_and_token(corpus_folder):
    run = plan_of(MICRO, corpus_folder).runs[0]
    assert run.conventional_flops == conventional_flops(run.num_params_total, run.num_tokens)
    assert run.conventional_flops == 6 * run.num_params_total * run.num_tokens


def test_utilisation_is_of_all_devices():
    """A 7B of 6 N D on 64 A100: 3,600 tokens a second and device are just below half of 312 TFLOP/s."""
    flops = conventional_flops(7e9, 3600 * 64 * 10.0)
    assert model_flops_utilisation(flops, 10.0, 64, 312e12) == pytest.approx(0.4846, abs=1e-4)

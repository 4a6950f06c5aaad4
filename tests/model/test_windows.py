"""Sliding windows: what a token sees, what that counts, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.model.architecture import DecoderOptions, ModelShape
from flopsfit_ds.model.flops import training_flops_per_token
from flopsfit_ds.train.model.decoder import Decoder
from helpers.sweeps import MICRO, plan_of, spec_of, with_values

PLAIN = ModelShape(1, 32, 4, 2, 40, 100, 16)


def windowed(num_layers: int, window: int, *pattern: str) -> ModelShape:
    options = DecoderOptions(sliding_window=window, sliding_window_pattern=pattern or ("local",))  # pyright: ignore
    return replace(PLAIN, num_layers=num_layers, options=options)


def reach(shape: ModelShape) -> int:
    """How many positions behind a token it is still seen, in the last position's logits and all before."""
    torch.manual_seed(0)
    model, tokens = Decoder(shape), torch.arange(16)[None] * 7 % 100
    changed = tokens.clone()
    changed[0, 2] = 99
    with torch.no_grad():
        differs = (model(changed) - model(tokens)).abs().amax(-1)[0] > 1e-7
    assert not differs[:2].any()
    return int(differs.nonzero().max()) - 2


def test_a_query_sees_as_many_tokens_as_the_window_says():
    assert reach(windowed(1, 4)) == 3
    assert reach(windowed(2, 4)) == 2 * 3
    assert reach(windowed(3, 4)) == 3 * 3
    assert reach(windowed(2, 4, "local", "global")) == reach(PLAIN) == 13


def test_a_windowed_layer_is_that_of_single_queries():
    """Each position alone, with the tokens of its window before it and nothing else, gives the same logits."""
    torch.manual_seed(0)
    model, tokens = Decoder(windowed(1, 4)), torch.arange(16)[None] * 7 % 100
    alone = Decoder(PLAIN)
    alone.load_state_dict(model.state_dict())
    with torch.no_grad():
        whole = model(tokens)
        for position in range(16):
            seen = tokens[:, max(0, position - 3) : position + 1]
            torch.testing.assert_close(alone(seen)[0, -1], whole[0, position], rtol=1e-4, atol=1e-6)


def test_flops_are_sums_by_hand():
    shape = windowed(7, 4, "local", "local", "global")  # layers 3 and 6 see all 16 tokens, the other five see 4
    matrices = 6 * (shape.parameters.attention + shape.parameters.mlp + 100 * 32)
    assert training_flops_per_token(shape) == matrices + 3 * 4 * 32 * (5 * 4 + 2 * 16)
    assert training_flops_per_token(replace(shape, options=DecoderOptions())) == matrices + 3 * 4 * 32 * 7 * 16


def test_windows_change_runs_and_their_absence_does_not(corpus_folder):
    plain, local, every_second = (
        plan_of(with_values(MICRO, model__width_per_layer=4, **changes), corpus_folder).runs[0]
        for changes in (
            {},
            {"model__sliding_window": 8},
            {"model__sliding_window": 8, "model__sliding_window_pattern": ["local", "global"]},
        )
    )
    assert len({plain.run_id, local.run_id, every_second.run_id}) == 3
    assert plain.flops / plain.num_tokens > every_second.flops / every_second.num_tokens
    assert every_second.flops / every_second.num_tokens > local.flops / local.num_tokens


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model__sliding_window": 16}, "sliding_window 16 hides nothing of a context_length of 16"),
        ({"model__sliding_window_pattern": ["local"]}, "says nothing without sliding_window"),
        ({"model__sliding_window": 4, "model__sliding_window_pattern": ["global"]}, "no local layer"),
        ({"model__sliding_window": 4, "model__sliding_window_pattern": ["near"]}, "sliding_window_pattern"),
    ],
)
def test_windows_that_say_nothing_are_refused(change, told):
    with pytest.raises(SpecError, match=told):
        spec_of(with_values(MICRO, **change))

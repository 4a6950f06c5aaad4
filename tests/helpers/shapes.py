"""Any shape of the decoder, and the module built of it without memory."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from flopsfit_ds.model.architecture import DecoderOptions, ModelShape
from flopsfit_ds.train.model.decoder import Decoder


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    heads_per_group = draw(st.sampled_from([1, 2, 4]))
    kv_heads = draw(st.integers(1, 4))
    head_dim = 2 * draw(st.integers(1, 16))
    return ModelShape(
        num_layers=draw(st.integers(1, 5)),
        hidden_size=kv_heads * heads_per_group * head_dim,
        num_heads=kv_heads * heads_per_group,
        num_kv_heads=kv_heads,
        intermediate_size=draw(st.integers(1, 200)),
        vocab_size=draw(st.integers(2, 1000)),
        context_length=draw(st.integers(1, 64)),
        tied_embeddings=draw(st.booleans()),
        options=DecoderOptions(
            qk_norm=draw(st.booleans()),
            activation=draw(st.sampled_from(["swiglu", "gelu"])),
            depth_scaled_init=draw(st.booleans()),
            positions=draw(st.sampled_from(["rotary", "learned"])),
            logit_softcap=draw(st.sampled_from([0.0, 30.0])),
            z_loss_weight=draw(st.sampled_from([0.0, 1e-4])),
            sliding_window=draw(st.sampled_from([0, 3, 16])),
            sliding_window_pattern=draw(st.sampled_from([("local",), ("local", "local", "global")])),
        ),
    )


def built(shape: ModelShape) -> Decoder:
    with torch.device("meta"):
        return Decoder(shape)

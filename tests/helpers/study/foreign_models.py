"""Models as other people write them, at toy size, each with its FLOPs by hand: the reference of what planning counts.

The hand counts follow `flopsfit_ds.model.flops`: forward FLOPs of a sample, and what the backward pass is spared where
no gradient is needed (the input's, frozen weights').
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F

from helpers.study.foreign_experts import ExpertBlocks, HashedExperts, LoopedExperts, Switch
from helpers.study.toy_sizes import CONTEXT, EXPERTS, HEADS, LAYERS, TOKEN_IDS, VOCAB, WINDOW


@dataclass(frozen=True)
class Foreign:
    """A model with what it is trained on.

    Attributes:
        model_class: Built with the width.
        batch: Inputs and targets of two samples.
        loss: Of outputs and targets.
        tokens: Predictions a sample.
        forward: FLOPs of the forward pass of a sample by hand, from the width.
        spared: FLOPs of the backward pass that no gradient asks for, from the width.
        idle: Parameters of experts that a token is not sent to, from the width.
    """

    model_class: type[nn.Module]
    batch: tuple[Any, Any]
    loss: Callable[[Any, Any], torch.Tensor]
    tokens: int
    forward: Callable[[int], float]
    spared: Callable[[int], float] = lambda width: 0
    idle: Callable[[int], int] = lambda width: 0


class NanoBlock(nn.Module):
    """As in nanoGPT: one matrix for queries, keys and values; fused attention, or products with a buffer for a mask."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.ln_1, self.ln_2, self.fused = nn.LayerNorm(width), nn.LayerNorm(width), fused
        self.register_buffer("bias", torch.tril(torch.ones(CONTEXT, CONTEXT)).view(1, 1, CONTEXT, CONTEXT))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        parts = self.c_attn(self.ln_1(x)).split(width, dim=2)
        query, key, value = (part.view(batch, tokens, HEADS, -1).transpose(1, 2) for part in parts)
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=0.1 * self.training, is_causal=True)
        else:
            scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
            scores = scores.masked_fill(self.bias[:, :, :tokens, :tokens] == 0, float("-inf"))
            mixed = F.dropout(scores.softmax(-1), 0.1, self.training) @ value
        x = x + self.c_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class Nano(nn.Module):
    def __init__(self, width: int, fused: bool = True) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, width), nn.Embedding(CONTEXT, width)
        self.h = nn.ModuleList(NanoBlock(width, fused) for _ in range(LAYERS))
        self.head = nn.Linear(width, VOCAB, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.head(x)


class NanoByHand(Nano):
    def __init__(self, width: int) -> None:
        super().__init__(width, fused=False)


class FromLibrary(nn.Module):
    """A model of transformers without its cache, that answers with logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = self.build(width)

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def shape(width: int, **more: Any) -> dict[str, Any]:
    common = {
        "vocab_size": VOCAB, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    return common | TOKEN_IDS | more


class Llama(FromLibrary):
    def build(self, width: int) -> nn.Module:
        return hf.LlamaForCausalLM(hf.LlamaConfig(**shape(width)))


class GPT2(FromLibrary):
    def build(self, width: int) -> nn.Module:
        config = hf.GPT2Config(vocab_size=VOCAB, n_embd=width, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT)
        return hf.GPT2LMHeadModel(config)


class Qwen3(FromLibrary):
    """Heads twice as wide as the model has room for."""

    def build(self, width: int) -> nn.Module:
        return hf.Qwen3ForCausalLM(hf.Qwen3Config(**shape(width, head_dim=2 * width // HEADS)))


class Gemma(FromLibrary):
    def build(self, width: int) -> nn.Module:
        return hf.GemmaForCausalLM(hf.GemmaConfig(**shape(width, head_dim=width // HEADS)))


class Gemma3(FromLibrary):
    """One layer with a sliding window, one that sees everything."""

    def build(self, width: int) -> nn.Module:
        types = ["sliding_attention", "full_attention"]
        config = shape(width, head_dim=width // HEADS, sliding_window=WINDOW, layer_types=types)
        return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**config))


class Mixtral(FromLibrary):
    def build(self, width: int) -> nn.Module:
        config = shape(width, num_local_experts=EXPERTS, num_experts_per_tok=2)
        return hf.MixtralForCausalLM(hf.MixtralConfig(**config))


class Qwen3Experts(FromLibrary):
    def build(self, width: int) -> nn.Module:
        config = shape(
            width, num_experts=EXPERTS, num_experts_per_tok=2, moe_intermediate_size=width, head_dim=width // HEADS
        )
        return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**config))


class Mamba2(FromLibrary):
    def build(self, width: int) -> nn.Module:
        config = hf.Mamba2Config(
            vocab_size=VOCAB, hidden_size=width, state_size=16, num_heads=HEADS, head_dim=2 * width // HEADS,
            n_groups=1, chunk_size=32, num_hidden_layers=LAYERS, **TOKEN_IDS,
        )  # fmt: skip
        return hf.Mamba2ForCausalLM(config)


class Gru(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(VOCAB, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(self.embedding(tokens))[0])


class T5(nn.Module):
    """Encoder and decoder; the decoder reads the same tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        config = hf.T5Config(
            vocab_size=VOCAB, d_model=width, d_kv=width // HEADS, d_ff=2 * width, num_layers=LAYERS, num_heads=HEADS,
            decoder_start_token_id=0, **TOKEN_IDS,
        )  # fmt: skip
        self.model = hf.T5ForConditionalGeneration(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, decoder_input_ids=tokens, use_cache=False).logits


class ViT(nn.Module):
    """4 x 4 patches and a class token; the head reads the class token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches, self.cls = nn.Conv2d(3, width, 8, 8), nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, HEADS, 4 * width, batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(len(x), -1, -1), x), 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class Clip(nn.Module):
    """The temperature is a parameter without a dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, 32))
        self.text = nn.Sequential(nn.Linear(48, width), nn.GELU(), nn.Linear(width, 32))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.scale.exp() * F.normalize(self.image(image), dim=-1) @ F.normalize(self.text(text), dim=-1).T


class ResNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)  # depthwise
        self.wide, self.head = nn.Conv2d(width, 2 * width, 1, stride=2), nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(self.wide(x + self.deep(x))).mean((2, 3)))


class Mixer(nn.Module):
    """Mixes along positions, then along channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB, width), nn.Linear(width, VOCAB)
        self.along = nn.Sequential(nn.Linear(CONTEXT, CONTEXT), nn.GELU(), nn.Linear(CONTEXT, CONTEXT))
        self.across = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.along(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x + self.across(x))


class LowRank(nn.Module):
    """Frozen layers with trained products of rank 4 beside them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.base = nn.Embedding(VOCAB, width), nn.Linear(width, width)
        self.down, self.up = nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False)
        self.head = nn.Linear(width, VOCAB)
        for module in (self.embedding, self.base, self.head):
            module.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        return self.head(self.base(x) + self.up(self.down(x)))


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def pair_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    here = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, here) + F.cross_entropy(logits.T, here)) / 2


def each_pair_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each pair of a batch, [batch]."""
    here = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, here, reduction="none") + F.cross_entropy(logits.T, here, reduction="none")) / 2


def decoder_flops(
    width: int, *, queries: float = 1.0, groups: float = 0.5, mlp: float = 6.0, keys: float = CONTEXT
) -> float:
    """Of a sample: `queries` and `groups` are the widths of queries and of keys over the model's, `mlp` in width^2."""
    matrices = (2 * queries + 2 * queries * groups + mlp) * width**2
    return CONTEXT * (LAYERS * (2 * matrices + 4 * keys * queries * width) + 2 * width * VOCAB)


def mamba2_flops(width: int) -> float:
    inner, state, chunk, taps = 2 * width, 16, 32, 4
    chunks, mixed = CONTEXT // chunk, inner + 2 * state
    projections = CONTEXT * 2 * width * (inner + mixed + HEADS + inner)
    convolution = 2 * (CONTEXT + taps - 1) * mixed * taps
    inside = 2 * CONTEXT * chunk * (HEADS * state + inner)
    across = 2 * inner * state * (2 * CONTEXT + (chunks + 1) ** 2)
    return LAYERS * (projections + convolution + inside + across) + CONTEXT * 2 * width * VOCAB


def expert_flops(width: int, mlp: float) -> float:
    return decoder_flops(width, mlp=mlp) + CONTEXT * LAYERS * 2 * width * EXPERTS


TOKENS = (torch.arange(2 * CONTEXT).view(2, CONTEXT) % VOCAB,) * 2
IMAGES = (torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))
PAIRS = ({"image": torch.ones(2, 64), "text": torch.ones(2, 48)}, torch.zeros(2))


def of_tokens(model_class: type[nn.Module], forward: Callable[[int], float], **more: Any) -> Foreign:
    return Foreign(model_class, TOKENS, token_loss, CONTEXT, forward, **more)


FOREIGN: dict[str, Foreign] = {
    "nanoGPT": of_tokens(Nano, lambda w: decoder_flops(w, groups=1, mlp=8)),
    "nanoGPT by hand": of_tokens(NanoByHand, lambda w: decoder_flops(w, groups=1, mlp=8)),
    "Llama": of_tokens(Llama, decoder_flops),
    "GPT-2": of_tokens(GPT2, lambda w: decoder_flops(w, groups=1, mlp=8)),
    "Qwen3": of_tokens(Qwen3, lambda w: decoder_flops(w, queries=2)),
    "Gemma": of_tokens(Gemma, decoder_flops),
    "Gemma 3": of_tokens(Gemma3, lambda w: decoder_flops(w, keys=(WINDOW + CONTEXT) / 2)),
    "Mixtral": of_tokens(Mixtral, lambda w: expert_flops(w, 12), idle=lambda w: LAYERS * (EXPERTS - 2) * 6 * w * w),
    "Qwen3-MoE": of_tokens(
        Qwen3Experts, lambda w: expert_flops(w, 6), idle=lambda w: LAYERS * (EXPERTS - 2) * 3 * w * w
    ),
    "Mamba-2": of_tokens(Mamba2, mamba2_flops),
    "GRU": of_tokens(
        Gru,
        lambda w: CONTEXT * (12 * w * w + 2 * w * VOCAB),
        spared=lambda w: 6 * w * w,  # the state before the first step needs no gradient
    ),
    "T5": of_tokens(
        T5,  # an encoder, a decoder with attention twice, and one head
        lambda w: 2 * decoder_flops(w, groups=1, mlp=4)
        + CONTEXT * (LAYERS * (8 * w * w + 4 * CONTEXT * w) - 2 * w * VOCAB),
    ),
    "Mixer": of_tokens(Mixer, lambda w: CONTEXT * (4 * CONTEXT * w + 4 * w * w + 2 * w * VOCAB)),
    "looped experts": of_tokens(
        LoopedExperts,
        lambda w: CONTEXT * 2 * (w * EXPERTS + 4 * w * w + w * VOCAB),
        idle=lambda w: (EXPERTS - 1) * (4 * w * w + 3 * w),
    ),
    "expert blocks": of_tokens(
        ExpertBlocks,
        lambda w: CONTEXT * 2 * (LAYERS * (w * EXPERTS + 4 * w * w) + w * VOCAB),
        idle=lambda w: LAYERS * (EXPERTS - 1) * (4 * w * w + 3 * w),
    ),
    "hashed experts": of_tokens(
        HashedExperts,
        lambda w: CONTEXT * 2 * (LAYERS * (w * EXPERTS + 4 * w * w) + w * VOCAB),
        idle=lambda w: LAYERS * (EXPERTS - 1) * (4 * w * w + 3 * w),
    ),
    "Switch": of_tokens(
        Switch,  # as T5, and a router in one layer of each
        lambda w: 2 * decoder_flops(w, groups=1, mlp=4)
        + CONTEXT * (LAYERS * (8 * w * w + 4 * CONTEXT * w) - 2 * w * VOCAB + 2 * 2 * w * EXPERTS),
        idle=lambda w: 2 * (EXPERTS - 1) * 4 * w * w,
    ),
    "low rank": of_tokens(
        LowRank,
        lambda w: CONTEXT * 2 * (w * w + 8 * w + w * VOCAB),
        # only the head's input, the second factor, and the first factor's weight have gradients
        spared=lambda w: CONTEXT * 2 * (2 * w * w + 4 * w + w * VOCAB),
    ),
    "ViT": Foreign(
        ViT, IMAGES, F.cross_entropy, 1,
        lambda w: 16 * 384 * w + LAYERS * 17 * (24 * w * w + 4 * 17 * w) + 20 * w,
        spared=lambda w: 16 * 384 * w,
    ),
    "CLIP": Foreign(
        Clip, PAIRS, pair_loss, 1,
        lambda w: 2 * (64 + 48 + 2 * 32) * w + 2 * 2 * 32,
        spared=lambda w: 2 * (64 + 48) * w,
    ),
    "ResNet": Foreign(
        ResNet, IMAGES, F.cross_entropy, 1,
        lambda w: 1024 * 2 * 9 * (3 * w + w) + 256 * 4 * w * w + 40 * w,
        spared=lambda w: 1024 * 2 * 27 * w,
    ),
}  # fmt: skip

"""Mixtures of experts as other people write them: which of their parameters a batch uses, its values say."""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from helpers.study.toy_sizes import CONTEXT, EXPERTS, HEADS, LAYERS, TOKEN_IDS, VOCAB


class LoopedExperts(nn.Module):
    """One of eight experts a token, with control flow that depends on the data."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB, width), nn.Linear(width, VOCAB)
        self.router = nn.Linear(width, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(EXPERTS)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        weight, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            if mask.any():
                out[mask] = weight[mask][:, None] * expert(x[mask])
        return self.head(x + out)


class ExpertBlock(nn.Module):
    """A feed-forward layer of experts, each a module that tokens may pass by."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(EXPERTS)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            if mask.any():
                out[mask] = weight[mask][:, None] * expert(x[mask])
        return x + out


class ExpertBlocks(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB, width), nn.Linear(width, VOCAB)
        self.blocks = nn.Sequential(*(ExpertBlock(width) for _ in range(LAYERS)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embedding(tokens)))


class HashedExpert(ExpertBlock):
    """The token itself says which expert it goes to."""

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        out = self.router(x).sum(-1, keepdim=True).expand_as(x).clone()
        chosen = tokens * EXPERTS // VOCAB
        for number in chosen.unique().tolist():
            mask = chosen == number
            out[mask] = out[mask] * self.experts[number](x[mask])
        return x + out


class HashedExperts(ExpertBlocks):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.blocks = nn.ModuleList(HashedExpert(width) for _ in range(LAYERS))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, tokens)
        return self.head(x)


class Switch(nn.Module):
    """Encoder and decoder of transformers, whose every second layer has experts that are modules."""

    def __init__(self, width: int) -> None:
        super().__init__()
        config = hf.SwitchTransformersConfig(
            vocab_size=VOCAB, d_model=width, d_kv=width // HEADS, d_ff=2 * width, num_layers=LAYERS,
            num_decoder_layers=LAYERS, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_heads=HEADS,
            num_experts=EXPERTS, expert_capacity=CONTEXT, dropout_rate=0.0, router_jitter_noise=0.0,
            decoder_start_token_id=0, **TOKEN_IDS,
        )  # fmt: skip
        self.model = hf.SwitchTransformersForConditionalGeneration(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, decoder_input_ids=tokens, use_cache=False).logits

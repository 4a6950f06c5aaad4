"""Small models of drawn shape, with samples and losses of their own."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from helpers.study.foreign_models import CONTEXT, VOCAB

SAMPLES = 61


class Drawn(nn.Module):
    """A decoder of drawn shape: grouped heads, a window, experts, a frozen layer, a head that may be the table."""

    def __init__(self, width: int, heads: int, groups: int, window: int, experts: int, chosen: int, tied: bool) -> None:
        super().__init__()
        self.heads, self.groups, self.chosen, inner = heads, groups, chosen, width // heads * groups
        self.embedding, self.head = nn.Embedding(VOCAB, width), nn.Linear(width, VOCAB, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, inner), nn.Linear(width, inner)
        self.frozen, self.router = nn.Linear(width, width), nn.Linear(width, experts)
        self.experts = nn.Parameter(torch.randn(experts, width, width))
        self.frozen.requires_grad_(False)
        self.register_buffer("mask", torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril().triu(1 - window))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.frozen(self.embedding(tokens))
        query, key, value = (
            layer(x).unflatten(-1, (count, -1)).transpose(1, 2)
            for layer, count in ((self.query, self.heads), (self.key, self.groups), (self.value, self.groups))
        )
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, enable_gqa=True)
        rows = x.transpose(1, 2).flatten(0, 1).flatten(1)
        weights, places = self.router(rows).softmax(-1).topk(self.chosen)
        order = places.flatten().argsort()
        sent = places.flatten()[:, None] == torch.arange(self.experts.shape[0], device=places.device)
        ends = sent.sum(0).cumsum(0).int()
        out = F.grouped_mm(rows[order // self.chosen], self.experts, offs=ends)
        mixed = torch.zeros_like(rows).index_add(0, order // self.chosen, out * weights.flatten()[order][:, None])
        return self.head(mixed).view(*tokens.shape, VOCAB)


class DrawnWithLoss(Drawn):
    """Takes labels, and returns its loss beside the logits."""

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:  # pyright: ignore
        logits = super().forward(tokens)
        return {"loss": masked_loss(logits, labels), "logits": logits}


class Sequences:
    """Random tokens, some of whose targets do not count, in the form that a model takes."""

    def __init__(self, masked: bool, own_loss: bool) -> None:
        self.masked, self.own_loss = masked, own_loss

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> Any:
        draws = torch.Generator().manual_seed(number)
        tokens = torch.randint(0, VOCAB, (CONTEXT + 1,), generator=draws)
        inputs, targets = tokens[:-1], tokens[1:].clone()
        if self.masked:
            targets[: int(torch.randint(0, CONTEXT - 4, (), generator=draws))] = -100
        return ({"tokens": inputs, "labels": targets} if self.own_loss else inputs), targets


def masked_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def own_loss(outputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    return outputs["loss"]


def draw(seed: int, width: int = 32) -> tuple[type[Drawn], dict[str, int | bool], Sequences, Any]:
    """A class with its arguments, its samples and its loss."""
    draws = random.Random(seed)
    groups = draws.choice([1, 2])
    arguments: dict[str, int | bool] = {
        "width": width, "heads": groups * draws.choice([1, 2, 4]), "groups": groups,
        "window": draws.choice([5, 40, CONTEXT]), "experts": draws.choice([4, 8]), "chosen": draws.choice([1, 2]),
        "tied": draws.random() < 0.5,
    }  # fmt: skip
    own = draws.random() < 0.5
    samples = Sequences(draws.random() < 0.5, own)
    return (DrawnWithLoss if own else Drawn), arguments, samples, (own_loss if own else masked_loss)

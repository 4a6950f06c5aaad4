"""Classes of a user's own, for specs that name a class."""

from __future__ import annotations

import torch
from torch import nn


class Bigram(nn.Module):
    """Logits of the next token from the present one, through `layers` layers of `width`."""

    def __init__(self, width: int = 8, layers: int = 1, vocab_size: int = 256, bias: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.Sequential(*(nn.Linear(width, width, bias=bias) for _ in range(layers)))
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embedding(tokens)))


class PeekingBigram(Bigram):
    """Its way depends on a weight's value, so that its FLOPs cannot be counted."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens if float(self.head.weight.detach().sum()) > 0 else tokens.flip(1))


class OtherBigram(Bigram):
    """Another class of the same shape."""

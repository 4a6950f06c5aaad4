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


class Declared(Bigram):
    """It says which of its parameters grow with width, for muP."""

    groups = {"input": ["embedding.weight", "*.bias"], "hidden": ["layers.*.weight"], "output": ["head.weight"]}  # noqa: RUF012

    @property
    def mup_groups(self) -> dict[str, object]:
        return {"width": self.embedding.embedding_dim, "initial_std": "fan_in", **self.groups}

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.head(hidden)


class DeclaredInPart(Declared):
    groups = {"input": ["embedding.weight"], "hidden": ["layers.*.weight"], "output": ["head.weight"]}  # noqa: RUF012


class DeclaredTwice(Declared):
    groups = {**Declared.groups, "hidden": ["layers.*"]}  # noqa: RUF012


class DeclaredWrongly(Declared):
    groups = {"input": ["layers.*.weight", "*.bias"], "hidden": ["embedding.weight"], "output": ["head.weight"]}  # noqa: RUF012


class DeclaredByDepth(Declared):
    """Its layers grow in number, too."""

    @property
    def mup_groups(self) -> dict[str, object]:
        return super().mup_groups | {"depth": len(self.layers), "branches": ["layers.?"]}

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = hidden + layer(torch.tanh(hidden))
        return self.head(hidden)

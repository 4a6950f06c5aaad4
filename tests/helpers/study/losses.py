"""Models with losses in the forms that people bring, small enough for one step in a millisecond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from flopsfit_ds.train.data.dataset import DatasetWorkload

VOCAB, LENGTH = 32, 16


class Bytes(torch.utils.data.Dataset):
    """Sequences and their successors; `own` hands the labels to the model too, `masked` leaves out some of them."""

    def __init__(self, kind: str = "pair", masked: bool = False, shift: bool = False, size: int = 400) -> None:
        generator = torch.Generator().manual_seed(3)
        self.tokens = torch.randint(VOCAB, (size, LENGTH + 1), generator=generator).cumsum(1) % VOCAB
        self.kind, self.masked, self.shift = kind, masked, shift

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        x, y = self.tokens[index, :-1], self.tokens[index, 1:].clone()
        labels = x.clone() if self.shift else y
        if self.masked:
            labels[: index * 7 % (LENGTH - 2)] = -100
        return ({"tokens": x, "labels": labels}, y) if self.kind == "own" else (x, labels)


class Sparse(Bytes):
    """Most samples have no target at all."""

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        x, y = super().__getitem__(index)
        return x, y if index % 5 == 0 else torch.full_like(y, -100)


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class LlamaLike(nn.Module):
    """Logits of the next token, as a tensor, in an output with `.logits`, or in a dictionary."""

    def __init__(self, width: int, form: str = "tensor", zero_head: bool = False) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB, width), nn.Linear(width, VOCAB)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.form = form
        if zero_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, tokens: torch.Tensor) -> Any:
        x = self.embedding(tokens)
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=x.device).triu(1)
        logits = self.head(x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0])
        return {"tensor": logits, "output": Output(logits), "dictionary": {"logits": logits}}[self.form]


class OwnLoss(LlamaLike):
    """Takes labels and returns its loss; of labels that are its own inputs it predicts the next."""

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor | None = None) -> Output:
        logits = super().forward(tokens)
        if labels is None:
            return Output(logits)
        own = bool(((tokens == labels) | (labels == -100)).all())
        scored, wanted = (logits[:, :-1], labels[:, 1:]) if own else (logits, labels)
        return Output(logits, F.cross_entropy(scored.flatten(0, 1), wanted.flatten()))


class Pairs(torch.utils.data.Dataset):
    """Two views of one thing."""

    def __init__(self, size: int = 400) -> None:
        generator = torch.Generator().manual_seed(5)
        self.first = torch.randn(size, 8, generator=generator)
        self.second = self.first @ torch.randn(8, 6, generator=generator)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {"first": self.first[index], "second": self.second[index]}, torch.tensor(0)


class Tower(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 4))
        self.two = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.normalize(self.one(first), dim=-1), F.normalize(self.two(second), dim=-1)


def of_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def each(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over the targets of each sample."""
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses.sum(1) / (targets != -100).sum(1)


def mean_of_samples(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return each(logits, targets).mean()


def summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return each(logits, targets).sum()


def misspelt(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    return of_logits(outputs.scores, targets)


def misshapen(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.flatten(0, 1)[1:], targets.flatten())


def own(output: Output, targets: torch.Tensor) -> torch.Tensor:
    assert output.loss is not None
    return output.loss


def each_contrastive(outputs: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    first, second = outputs
    return F.cross_entropy(9 * first @ second.T, torch.arange(len(first), device=first.device), reduction="none")


def contrastive(outputs: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    return each_contrastive(outputs, targets).mean()


def workload(model_class, dataset, loss_fn, sample_loss_fn, traits, arguments=(("width", 16),)) -> DatasetWorkload:
    """What a run of a study trains; 13 samples are held out, which no batch divides."""
    return DatasetWorkload(
        model_class, arguments, dataset, None, 13, loss_fn, sample_loss_fn, tokens_per_sample=LENGTH, traits=traits
    )

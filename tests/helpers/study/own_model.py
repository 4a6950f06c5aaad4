"""A user's project: a class, a dataset and a script of their own."""

from __future__ import annotations

import random
import sys

import torch
from torch import nn

from flopsfit_ds import find_optimal


class Regressor(nn.Module):
    def __init__(self, width: int, inputs: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).squeeze(-1)


class Convolution(nn.Module):
    """Uses each weight at every position, and normalises over the batch; with `peek`, its way depends on a weight."""

    def __init__(self, width: int, peek: bool = False) -> None:
        super().__init__()
        self.peek = peek
        self.wide = nn.Conv1d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.peek and float(self.last.weight.sum()) == 0:
            return x[:, 0]
        return self.last(self.norm(self.wide(x[:, None]).mean(-1))).squeeze(-1)


class Waves(torch.utils.data.Dataset):
    def __init__(self, size: int = 4000) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(size, 16, generator=generator)
        self.y = torch.sin(self.x[:, :4].sum(1)) + self.x[:, 5]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


class Language(nn.Module):
    """Logits of the next of 64 words: an embedding, a layer, and a head, which may be the embedding."""

    def __init__(self, width: int, tied: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(width, 64, bias=False)
        self.embedding = nn.Embedding(64, width)
        self.layer = nn.Linear(width, width)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embedding(words)))


class NoisyWaves(Waves):
    """Each time it is read, a sample is another."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index] + random.random() + torch.rand(()), self.y[index]


def study(model_class: type[nn.Module] = Regressor, **changes):
    options = {
        "size_parameter": "width",
        "dataset": Waves(),
        "loss_fn": nn.functional.mse_loss,
        "compute_budgets": [2e8, 4e8],
        "global_batch_samples": 128,
        "design": {"sizes_per_budget": 3, "tokens_per_parameter": 20, "size_span": 8},
        "training": {"precision": "fp32", "learning_rates": [3e-3]},
        "hardware": {"device": "cpu", "gpus_per_node": 2},
    }
    return find_optimal(model_class, **(options | changes))


if __name__ == "__main__":
    study(output_root=sys.argv[-2], placement={"num_gpus": [int(sys.argv[-1])]})

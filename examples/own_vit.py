"""A vision transformer of its own, studied by `find_optimal`: which size is best for a training budget."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from flopsfit_ds import find_optimal

IMAGE, PATCH = 16, 4
DIRECTIONS, WIDTHS = 8, 4
NOISE = 1.5


class Gratings(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Noisy gratings in one of 8 directions and 4 widths, at any phase; an image is a function of its number."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        rows, columns = torch.meshgrid(torch.arange(IMAGE), torch.arange(IMAGE), indexing="ij")
        self._rows, self._columns = rows.float(), columns.float()

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """An image, [1, 16, 16], and its class, below 32."""
        random = torch.Generator().manual_seed(index)
        label = int(torch.randint(DIRECTIONS * WIDTHS, (), generator=random))
        direction, width = math.pi * (label % DIRECTIONS) / DIRECTIONS, 3.0 + label // DIRECTIONS
        phase = 2 * math.pi * float(torch.rand((), generator=random))
        along = self._rows * math.sin(direction) + self._columns * math.cos(direction)
        image = torch.sin(2 * math.pi * along / width + phase)
        image += NOISE * torch.randn(image.shape, generator=random)
        return image[None], torch.tensor(label)


class VisionTransformer(nn.Module):
    """Patches, learned positions, blocks of attention, and the mean of all patches to the classes."""

    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn((IMAGE // PATCH) ** 2, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, DIRECTIONS * WIDTHS)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of the classes, [batch, 32], of images, [batch, 1, 16, 16]."""
        hidden = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden.mean(1)))


def study(**changes: Any) -> Any:
    """Plan, train, fit and report; with `train=False` the plan alone."""
    return find_optimal(
        VisionTransformer,
        size_parameter="width",
        size_multiple_of=4,
        dataset=Gratings(200_000),
        loss_fn=nn.functional.cross_entropy,
        compute_budgets=[3e10, 6e10, 1.2e11],
        heldout_fraction=0.01,
        global_batch_samples=64,
        name="own-vit",
        design={"sizes_per_budget": 4, "size_span": 8, "tokens_per_parameter": 8},
        training={"precision": "fp32", "learning_rates": [3e-3]},
        hardware={"device": "cpu", "gpus_per_node": 2},
        **changes,
    )


if __name__ == "__main__":
    study()

"""The workload of a mixture: one model, several files of ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flopsfit_ds.train.data.sampling import Mixture
from flopsfit_ds.train.data.tokens import LanguageWorkload, TokenWorkload, stays_within_documents


@dataclass(frozen=True)
class MixtureWorkload(LanguageWorkload):
    """A language model on several files of ids; samples are numbered one file after another.

    Attributes:
        names: Of the sources.
        weights: Of each, a whole number.
        parts: The files, each with held-out tokens of its own.
    """

    names: tuple[str, ...]
    weights: tuple[int, ...]
    parts: tuple[TokenWorkload, ...]

    @property
    def num_training_samples(self) -> int:
        """Windows outside the held-out tails."""
        return sum(part.num_training_samples for part in self.parts)

    @property
    def num_heldout_samples(self) -> int:
        """Windows of the held-out tails."""
        return sum(part.num_heldout_samples for part in self.parts)

    @property
    def mixture(self) -> Mixture:
        """Which source a sample is of, by weight."""
        return Mixture(self.names, self.weights, tuple(part.num_training_samples for part in self.parts))

    def training_batch(self, indices: np.ndarray) -> tuple[Any, torch.Tensor]:
        """Inputs and targets, as those of one file."""
        inputs, targets, _ = self._gather(indices, self.mixture.sizes, [part.training_batch for part in self.parts])
        return inputs, targets

    def heldout_batch(self, indices: np.ndarray) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Inputs and targets, as those of one file, and what each window counts, [batch].

        All windows of a source count its share together, however many it holds out.
        """
        sizes = [part.num_heldout_samples for part in self.parts]
        inputs, targets, sources = self._gather(indices, sizes, [part.heldout_batch for part in self.parts])
        counts = np.array(self.weights) / sum(self.weights) * sum(sizes) / np.array(sizes)
        return inputs, targets, torch.from_numpy(counts[sources])

    def heldout_weights(self, batch: Any) -> torch.Tensor:
        """What each window counts, [batch]."""
        return batch[2]

    def sample_losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Cross-entropy in nats a token of each window, [batch]."""
        return super().sample_losses(model, batch[:2])

    def _gather(
        self, indices: np.ndarray, sizes: Sequence[int], read: Sequence[Callable[[np.ndarray], Any]]
    ) -> tuple[Any, torch.Tensor, np.ndarray]:
        """Windows by number among those of all sources: inputs, targets, and the source of each."""
        ends = np.cumsum(sizes)
        sources = np.searchsorted(ends, indices, side="right")
        inputs, starts, targets = torch.empty((3, len(indices), self.shape.context_length), dtype=torch.int64)
        within = stays_within_documents(self.shape)
        for number in np.unique(sources):
            here = np.flatnonzero(sources == number)
            rows = torch.from_numpy(here)
            given, targets[rows] = read[number](indices[here] - (ends[number] - sizes[number]))
            if within:
                inputs[rows], starts[rows] = given
            else:
                inputs[rows] = given
        return (inputs, starts) if within else inputs, targets, sources


def seen_of_sources(mixture: Mixture | None, num_samples: int, seed: int, tokens_per_sample: int) -> dict[str, Any]:
    """Of each source of a mixture the tokens that the first samples of a run hold, and those that there are.

    Args:
        mixture: The sources; None where there is one.
        num_samples: Samples trained on.
        seed: Of the run.
        tokens_per_sample: Predictions a sample.
    """
    if mixture is None:
        return {}
    taken = mixture.taken(np.array([num_samples]), seed)[:, 0].tolist()
    return {
        name: {"num_tokens": count * tokens_per_sample, "unique_tokens": size * tokens_per_sample}
        for name, count, size in zip(mixture.names, taken, mixture.sizes, strict=True)
    }


def distinct_samples(mixture: Mixture | None, num_samples: int, all_samples: int, seed: int) -> int:
    """Samples that a run of so many can see; fewer than those where any is seen twice.

    Args:
        mixture: The sources; None where there is one.
        num_samples: Samples of the run.
        all_samples: Samples of the data.
        seed: Of the run.
    """
    if mixture is None:
        return all_samples
    taken = mixture.taken(np.array([num_samples]), seed)[:, 0].tolist()
    if all(count <= size for count, size in zip(taken, mixture.sizes, strict=True)):
        return all_samples
    return sum(map(min, taken, mixture.sizes))

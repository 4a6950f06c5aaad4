"""The workload of `find_optimal`: a user's own class, dataset and loss function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.model.loss_traits import LossTraits
from flopsfit_ds.train.data.means import IGNORED, SAMPLE_LOSS_FN, close, count_entries, no_mean, weighted_mean
from flopsfit_ds.train.data.outputs import call_model, num_samples, outputs_of, rows_of, tensors_of
from flopsfit_ds.train.data.sampling import permute
from flopsfit_ds.train.seeding import seeded

_SPLIT_KEY = 0x5EED
"""Arbitrary; another one would hold other samples out, and change every run's identity."""
_LOOKED_AT = 256  # each is a call of the user's dataset, once a study; part of what its plan tells
_TELLING_SAMPLES = 4  # the least masked or filled up, the most, and two between


@dataclass(frozen=True)
class DatasetWorkload:
    """Samples of a map-style dataset, each a pair (inputs, targets).

    Attributes:
        model_class: Built with `arguments`.
        arguments: The constructor's arguments, sorted by name.
        dataset: Training samples; without `heldout`, the last of a fixed shuffle of it are held out.
        heldout: Samples the loss is measured on, or None.
        num_heldout: Samples taken from `dataset` where there is no `heldout`.
        loss_fn: `loss_fn(outputs, targets)`, a scalar mean.
        sample_loss_fn: `sample_loss_fn(outputs, targets)`, the loss of each sample, [batch]; None where `loss_fn` of a
            batch of one sample says it.
        tokens_per_sample: Predictions that a sample counts as.
        traits: What was seen of the loss on a small model.
    """

    model_class: Callable[..., torch.nn.Module]
    arguments: tuple[tuple[str, Any], ...]
    dataset: Any
    heldout: Any | None
    num_heldout: int
    loss_fn: Callable[[Any, Any], torch.Tensor]
    sample_loss_fn: Callable[[Any, Any], torch.Tensor] | None
    tokens_per_sample: int
    traits: LossTraits = LossTraits()  # noqa: RUF009

    @property
    def num_training_samples(self) -> int:
        """Samples to train on."""
        return len(self.dataset) - (self.num_heldout if self.heldout is None else 0)

    @property
    def num_heldout_samples(self) -> int:
        """Samples to measure on."""
        return self.num_heldout if self.heldout is None else len(self.heldout)

    @property
    def mixture(self) -> None:
        """None: an object is one source."""
        return None

    @property
    def draws_weights_in_constructors(self) -> bool:
        """Unknown of a user's class, hence False: it is built whole before it is partitioned."""
        return False

    @property
    def draws_in_training(self) -> bool:
        """Unknown of a user's class, loss and dataset, hence True."""
        return True

    @property
    def uses_every_parameter(self) -> bool:
        """Unknown of a user's class, hence False."""
        return False

    @property
    def counts_targets(self) -> bool:
        """Whether the loss is a mean over real targets."""
        return self.traits.counted is not None

    @property
    def needs_whole_batches(self) -> bool:
        """Whether the loss of a sample depends on the others of its batch."""
        return self.traits.needs_whole_batches

    def build_model(self, activation_checkpointing: bool) -> torch.nn.Module:
        """The user's class; checkpointing is the class's own business, and the planner does not ask it for any."""
        assert not activation_checkpointing
        return self.model_class(**dict(self.arguments))

    def training_batch(self, indices: np.ndarray) -> Any:
        """Samples by number among the training samples, collated."""
        return _collate(self.dataset, self._positions(indices))

    def heldout_batch(self, indices: np.ndarray) -> Any:
        """Samples by number among the held-out samples, collated."""
        if self.heldout is not None:
            return _collate(self.heldout, indices, "eval_dataset", drawn_by_number=True)
        return _collate(self.dataset, self._positions(indices + self.num_training_samples), drawn_by_number=True)

    def _positions(self, numbers: np.ndarray) -> np.ndarray:
        """Where in the dataset a sample lies: a fixed shuffle, so that the held-out share is a fair sample."""
        if self.heldout is not None:
            return numbers
        return permute(numbers, len(self.dataset), _SPLIT_KEY)

    def num_targets(self, batch: Any) -> torch.Tensor:
        """Targets of each sample, [batch]: those that the loss is a mean over, else those that are not masked."""
        counted = self.traits.counted
        if counted is not None:
            return count_entries(batch, counted)
        size = num_samples(batch[1])
        targets = tensors_of(batch[1])[0]
        if not targets.is_floating_point() and targets[0].numel() == self.tokens_per_sample:
            return (targets != IGNORED).view(size, -1).sum(1)
        return torch.full((size,), self.tokens_per_sample, device=targets.device)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The user's loss of a batch."""
        inputs, targets = batch
        return self.loss_fn(self._outputs(model, inputs), targets)

    def empty_loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Zero, by way of the outputs: every rank goes through a backward pass.

        Raises:
            DataError: The model returns nothing but its own loss.
        """
        outputs = [tensor for tensor in tensors_of(call_model(model, batch[0])) if tensor.requires_grad and tensor.ndim]
        if not outputs:
            raise DataError(
                "dataset: no sample of a micro-batch has a target, and the model returns no outputs beside its loss; "
                "leave out samples without a target"
            )
        return torch.stack([0.0 * tensor.sum() for tensor in outputs]).sum()

    def sample_losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The user's loss of each sample, [batch]."""
        inputs, targets = batch
        if self.traits.sample_by_sample and self.sample_loss_fn is None:
            size = num_samples(targets)
            rows = [slice(index, index + 1) for index in range(size)]
            return torch.stack([self.loss(model, rows_of(batch, row, size)) for row in rows])
        return self._losses_of_samples(self._outputs(model, inputs), targets)

    def heldout_weights(self, batch: Any) -> torch.Tensor:
        """What each sample counts in the held-out loss, [batch]: its targets, where the loss is a mean over them."""
        counts = self.num_targets(batch).double()
        return counts if self.traits.counts_in_heldout else torch.ones_like(counts)

    def check_losses(self, model: torch.nn.Module, batch: Any) -> None:
        """See that the loss of a batch is the mean of its samples' losses, as the held-out loss takes it to be.

        Raises:
            DataError: It is not, or single samples have no loss; where the user says the loss of each sample: it is
                not one number a sample.
        """
        inputs, targets = batch
        size = num_samples(targets)
        if self.traits.sample_by_sample and self.sample_loss_fn is None:
            return  # planning compared them, on a device where a batch of one has the sums of a larger one
        outputs = self._outputs(model, inputs)
        try:
            losses = self._losses_of_samples(outputs, targets)
        except Exception as error:
            if self.sample_loss_fn is not None:
                raise
            raise DataError(
                f"loss_fn: it fails on one sample of a batch of {size} ({type(error).__name__}: {error}); the model's "
                f"outputs need a row a sample, or give find_optimal a sample_loss_fn: {SAMPLE_LOSS_FN}"
            ) from error
        if self.sample_loss_fn is not None:
            if losses.shape != (size,):
                raise DataError(
                    f"sample_loss_fn: it must return one loss a sample, [{size}]; it returned {list(losses.shape)}"
                )
            return
        weights = self.heldout_weights(batch)
        if not weights.sum():
            return
        whole, mean = self.loss_fn(outputs, targets).item(), weighted_mean(losses, weights)
        if not close(whole, mean, weighted_mean(losses.abs(), weights)):
            raise DataError(no_mean(size, whole, mean))

    def _outputs(self, model: torch.nn.Module, inputs: Any) -> Any:
        return outputs_of(model, inputs, self.traits)

    def _losses_of_samples(self, outputs: Any, targets: Any) -> torch.Tensor:
        if self.sample_loss_fn is not None:
            return self.sample_loss_fn(outputs, targets)
        size = num_samples(targets)
        rows = [slice(index, index + 1) for index in range(size)]
        return torch.stack([self.loss_fn(rows_of(outputs, row, size), rows_of(targets, row, size)) for row in rows])


def _collate(
    dataset: Any, positions: Sequence[int] | np.ndarray, name: str = "dataset", *, drawn_by_number: bool = False
) -> Any:
    """A batch of items; an error names the item that raises, or those that do not go together.

    With `drawn_by_number` a dataset that draws at random gives the same item whenever it is asked for it.
    """
    items = []
    for position in map(int, positions):
        try:
            with seeded(position) if drawn_by_number else contextlib.nullcontext():
                inputs, targets = dataset[position]
        except Exception as error:
            raise DataError(f"{name}: item {position} is no pair or raises {type(error).__name__}: {error}") from error
        items.append((inputs, targets))
    try:
        inputs, targets = default_collate(items)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        numbers = ", ".join(str(int(position)) for position in positions)
        raise DataError(f"{name}: items {numbers} do not make one batch: {error}") from error
    return inputs, targets


def _num_masked(item: Any) -> tuple[int, int]:
    """Masked targets of a sample, and entries that are as the one at their tensor's end: padding, or a mask's."""
    leaves = [leaf for leaf in tensors_of(tuple(item)) if leaf.numel() > 1]
    whole = (leaf for leaf in tensors_of(tuple(item)) if not leaf.is_floating_point())
    ends = (max(int((leaf == leaf.flatten()[place]).sum()) for place in (0, -1)) for leaf in leaves)
    return sum(int((leaf == IGNORED).sum()) for leaf in whole), sum(ends)


def _spaced(dataset: Any, count: int) -> list[int]:
    count = min(len(dataset), count)
    return [number * (len(dataset) - 1) // max(count - 1, 1) for number in range(count)]


def spaced_batch(dataset: Any, count: int) -> Any:
    """A batch of evenly spaced samples, as many as there are at most.

    Raises:
        DataError: They cannot be made a batch.
    """
    with seeded(0):  # for a dataset that draws at random
        return _collate(dataset, _spaced(dataset, count))


def telling_batch(dataset: Any) -> Any:
    """A batch to look at a loss with: of evenly spaced samples those that differ most in how much of them is masked.

    Where none has masked targets, those that differ most in how much of them is filled up: padding by an id, a mask
    among the inputs.

    Raises:
        DataError: They cannot be made a batch.
    """
    positions = _spaced(dataset, _LOOKED_AT)
    with seeded(0):  # for a dataset that draws at random
        masked = {position: _num_masked(dataset[position]) for position in dict.fromkeys(positions)}
        ranked = sorted(masked, key=lambda position: masked[position])
        chosen = [ranked[number * (len(ranked) - 1) // (_TELLING_SAMPLES - 1)] for number in range(_TELLING_SAMPLES)]
        return _collate(dataset, chosen)

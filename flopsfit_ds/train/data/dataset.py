"""The workload of `find_optimal`: a user's own class, dataset and loss function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree
from torch.utils.data import default_collate

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.train.data.sampling import permute

_SPLIT_KEY = 0x5EED
"""Arbitrary; another one would hold other samples out, and change every run's identity."""
_HALF = (torch.bfloat16, torch.float16)
_TOLERANCE = 2e-5
"""Between the loss of a batch and the mean of its samples' losses, which differ in the order of their sums."""
_SAMPLE_LOSS_FN = "sample_loss_fn(outputs, targets), the loss of each sample, [batch]"


def call_model(model: Any, inputs: Any) -> Any:
    """`model(inputs)`; a dictionary is passed as keyword arguments, a tuple or list as positional ones.

    Outputs in half precision are handed on in fp32: autocast ends with the forward pass, and in bf16 a user's loss
    would have three digits.
    """
    if isinstance(inputs, dict):
        outputs = model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    return _map_tensors(lambda tensor: tensor.float() if tensor.dtype in _HALF else tensor, outputs)


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
    """

    model_class: type[torch.nn.Module]
    arguments: tuple[tuple[str, Any], ...]
    dataset: Any
    heldout: Any | None
    num_heldout: int
    loss_fn: Callable[[Any, Any], torch.Tensor]
    sample_loss_fn: Callable[[Any, Any], torch.Tensor] | None
    tokens_per_sample: int

    @property
    def num_training_samples(self) -> int:
        """Samples to train on."""
        return len(self.dataset) - (self.num_heldout if self.heldout is None else 0)

    @property
    def num_heldout_samples(self) -> int:
        """Samples to measure on."""
        return self.num_heldout if self.heldout is None else len(self.heldout)

    @property
    def tokens_per_heldout_sample(self) -> int:
        """Predictions that a sample counts as."""
        return self.tokens_per_sample

    @property
    def draws_weights_in_constructors(self) -> bool:
        """Unknown of a user's class, hence False: it is built whole before it is partitioned."""
        return False

    @property
    def uses_every_parameter(self) -> bool:
        """Unknown of a user's class, hence False."""
        return False

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
            return _collate(self.heldout, indices, "eval_dataset")
        return _collate(self.dataset, self._positions(indices + self.num_training_samples))

    def _positions(self, numbers: np.ndarray) -> np.ndarray:
        """Where in the dataset a sample lies: a fixed shuffle, so that the held-out share is a fair sample."""
        if self.heldout is not None:
            return numbers
        return permute(numbers, len(self.dataset), _SPLIT_KEY)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The user's loss of a batch."""
        inputs, targets = batch
        return self.loss_fn(call_model(model, inputs), targets)

    def sample_losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The user's loss of each sample, [batch]."""
        inputs, targets = batch
        return self._losses_of_samples(call_model(model, inputs), targets)

    def check_losses(self, model: torch.nn.Module, batch: Any) -> None:
        """See that the loss of a batch is the mean of its samples' losses, as the held-out loss takes it to be.

        Raises:
            DataError: It is not, or single samples have no loss; where the user says the loss of each sample: it is
                not one number a sample.
        """
        inputs, targets = batch
        outputs = call_model(model, inputs)
        size = _num_samples(targets)
        try:
            losses = self._losses_of_samples(outputs, targets)
        except Exception as error:
            if self.sample_loss_fn is not None:
                raise
            raise DataError(
                f"loss_fn: it fails on one sample of a batch of {size} ({type(error).__name__}: {error}); the model's "
                f"outputs need a row a sample, or give find_optimal a sample_loss_fn: {_SAMPLE_LOSS_FN}"
            ) from error
        if self.sample_loss_fn is not None:
            if losses.shape != (size,):
                raise DataError(
                    f"sample_loss_fn: it must return one loss a sample, [{size}]; it returned {list(losses.shape)}"
                )
            return
        whole, mean = self.loss_fn(outputs, targets).item(), losses.double().mean().item()
        if not abs(whole - mean) <= _TOLERANCE * losses.double().abs().mean().item():
            raise DataError(
                f"loss_fn: the loss of a batch of {size} is {whole:.6g} and the mean over its samples, each alone, is "
                f"{mean:.6g}; the held-out loss would not be what is trained: it must be a mean over samples (no sum, "
                f"no mean over unmasked targets only), or give find_optimal a sample_loss_fn: {_SAMPLE_LOSS_FN}"
            )

    def _losses_of_samples(self, outputs: Any, targets: Any) -> torch.Tensor:
        if self.sample_loss_fn is not None:
            return self.sample_loss_fn(outputs, targets)
        size = _num_samples(targets)
        return torch.stack(
            [self.loss_fn(_one(outputs, index, size), _one(targets, index, size)) for index in range(size)]
        )


def _num_samples(targets: Any) -> int:
    return len(_pytree.tree_leaves(targets)[0])


def _one(tree: Any, index: int, size: int) -> Any:
    """One sample of a collated tree; a tensor that has no row a sample belongs to the whole batch and is kept."""

    def row(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[index : index + 1] if tensor.ndim > 0 and len(tensor) == size else tensor

    return _map_tensors(row, tree)


def _map_tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    if dataclasses.is_dataclass(tree) and type(tree) not in _pytree.SUPPORTED_NODES:
        _pytree.register_dataclass(type(tree))
    return _pytree.tree_map_only(torch.Tensor, function, tree)


def _collate(dataset: Any, positions: Sequence[int] | np.ndarray, name: str = "dataset") -> Any:
    """A batch of items; an error names the item that raises, or those that do not go together."""
    items = []
    for position in map(int, positions):
        try:
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

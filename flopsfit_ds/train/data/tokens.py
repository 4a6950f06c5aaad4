"""The workload that trains a language model on a file of token ids."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.documents import document_ends
from flopsfit_ds.model.architecture import HfShape, LanguageShape, ModelShape
from flopsfit_ds.model.head import fits_at_once
from flopsfit_ds.train.data.outputs import logits_of
from flopsfit_ds.train.data.token_file import TokenFile
from flopsfit_ds.train.model.cross_entropy import plain_losses
from flopsfit_ds.train.model.language import build_language_model


@dataclass(frozen=True)
class LanguageWorkload:
    """A language model on windows of `context_length` tokens and their successors, wherever they come from.

    Attributes:
        shape: The built-in decoder, a class of the user's called as `model(tokens) -> logits`, or a library's model.
    """

    shape: LanguageShape

    @property
    def draws_weights_in_constructors(self) -> bool:
        """True of the built-in decoder; unknown, hence False, of all others."""
        return isinstance(self.shape, ModelShape)

    @property
    def draws_in_training(self) -> bool:
        """False of the built-in decoder; unknown, hence True, of all others."""
        return not isinstance(self.shape, ModelShape)

    @property
    def uses_every_parameter(self) -> bool:
        """True of the built-in decoder; unknown, hence False, of all others."""
        return isinstance(self.shape, ModelShape)

    @property
    def counts_targets(self) -> bool:
        """False: every window has equally many."""
        return False

    @property
    def needs_whole_batches(self) -> bool:
        """False: each token has a loss of its own."""
        return False

    def build_model(self, activation_checkpointing: bool) -> torch.nn.Module:
        """The decoder, the user's class with its arguments, or the library's model."""
        return build_language_model(self.shape, activation_checkpointing)

    def num_targets(self, batch: Any) -> torch.Tensor:
        """Tokens of each window, [batch]."""
        return torch.full((len(batch[1]),), self.shape.context_length, device=batch[1].device)

    def empty_loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """No window is without a target."""
        raise AssertionError

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Cross-entropy in nats a token, over all tokens of the batch, and the loss of a router that has one."""
        return language_model_loss(self.shape, model, batch)

    def sample_losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Cross-entropy in nats a token of each window, [batch]."""
        inputs, targets = batch
        if _finds_its_loss(self.shape, targets):
            return _called(model, inputs, targets, reduce=False).mean(dim=1)
        return plain_losses(logits_of(_called(model, inputs)), targets).mean(dim=1)

    def check_losses(self, model: torch.nn.Module, batch: Any) -> None:
        """Nothing to see: both are means of the same losses of tokens, and every window has equally many."""


@dataclass(frozen=True)
class TokenWorkload(LanguageWorkload):
    """A language model on a token file; samples are windows of `context_length` tokens and their successors.

    Attributes:
        shape: The built-in decoder, a class of the user's called as `model(tokens) -> logits`, or a library's model.
        tokens: The ids.
        only_measured: Whether none of them is trained on.
    """

    tokens: TokenFile
    only_measured: bool = False

    def __post_init__(self) -> None:
        if (self.num_training_samples < 1 and not self.only_measured) or self.num_heldout_samples < 1:
            raise DataError(
                f"{self.tokens.path}: {self.tokens.num_tokens} tokens, {self.tokens.heldout_tokens} of them held out, "
                f"do not give a sequence of {self.shape.context_length} tokens to train on and one to measure"
            )

    @property
    def num_training_samples(self) -> int:
        """Windows outside the held-out tail."""
        return (self.tokens.num_tokens - self.tokens.heldout_tokens - 1) // self.shape.context_length

    @property
    def num_heldout_samples(self) -> int:
        """Windows of the held-out tail."""
        return (self.tokens.heldout_tokens - 1) // self.shape.context_length

    @property
    def mixture(self) -> None:
        """None: a file is one source."""
        return None

    def training_batch(self, indices: np.ndarray) -> tuple[Any, torch.Tensor]:
        """Inputs and targets, each [batch, context_length].

        Where attention stays within documents, inputs are the ids and for each token where in the sequence its
        document begins.
        """
        return self._windows(indices * self.shape.context_length)

    def heldout_batch(self, indices: np.ndarray) -> tuple[Any, torch.Tensor]:
        """Inputs and targets, each [batch, context_length]; inputs as of `training_batch`."""
        start = self.tokens.num_tokens - self.tokens.heldout_tokens
        return self._windows(start + indices * self.shape.context_length)

    def _windows(self, starts: np.ndarray) -> tuple[Any, torch.Tensor]:
        offsets = np.arange(self.shape.context_length + 1)
        windows = torch.from_numpy(_open(self.tokens)[starts[:, None] + offsets].astype(np.int64))
        inputs, targets = windows[:, :-1], windows[:, 1:]
        if not stays_within_documents(self.shape):
            return inputs, targets
        return (inputs, torch.from_numpy(self._document_starts(starts))), targets

    def _document_starts(self, starts: np.ndarray) -> np.ndarray:
        """Where in its window the document of each token begins, 0 if before it, [batch, context_length]."""
        assert self.tokens.ends is not None
        ends, found = _ends(self.tokens.ends), np.zeros((len(starts), self.shape.context_length), np.int64)
        firsts = np.searchsorted(ends, starts, side="right")
        lasts = np.searchsorted(ends, starts + self.shape.context_length)
        for row, start, first, last in zip(found, starts, firsts, lasts, strict=True):
            inside = ends[first:last] - start
            row[inside] = inside
        return np.maximum.accumulate(found, axis=1)

    def heldout_weights(self, batch: Any) -> torch.Tensor:
        """Every window counts alike, [batch]."""
        return torch.ones(len(batch[1]), dtype=torch.float64, device=batch[1].device)


def language_model_loss(shape: LanguageShape, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Mean cross-entropy in nats a token, and what is added to it: a z-loss, a mixture's loss that balances experts.

    The built-in decoder finds its own where its logits would be many.

    Args:
        shape: Of the model.
        model: The module, or an engine around it.
        batch: Inputs and targets, each [batch, context_length].
    """
    inputs, targets = batch
    if _finds_its_loss(shape, targets):
        return _called(model, inputs, targets)
    outputs = _called(model, inputs)
    z_loss_weight = shape.options.z_loss_weight if isinstance(shape, ModelShape) else 0.0
    loss = plain_losses(logits_of(outputs), targets, z_loss_weight).mean()
    if isinstance(shape, HfShape) and shape.router_loss_weight:
        loss = loss + shape.router_loss_weight * outputs.aux_loss
    return loss


def _called(model: torch.nn.Module, inputs: Any, *targets: torch.Tensor, **options: Any) -> Any:
    """What the model gives; inputs are ids, or these and where documents begin."""
    if isinstance(inputs, torch.Tensor):
        return model(inputs, *targets, **options)
    ids, document_starts = inputs
    return model(ids, *targets, document_starts=document_starts, **options)


def _finds_its_loss(shape: LanguageShape, targets: torch.Tensor) -> bool:
    return isinstance(shape, ModelShape) and not fits_at_once(targets.numel(), shape.vocab_size)


def stays_within_documents(shape: LanguageShape) -> bool:
    """Whether a model is told where documents begin."""
    return isinstance(shape, ModelShape) and not shape.options.attention_across_documents


@functools.lru_cache(maxsize=64)
def _ends(place: str) -> np.ndarray:
    return np.asarray(document_ends(Path(place)))


@functools.lru_cache(maxsize=64)  # files of a mixture and of held-out sets; each is an open map
def _open(tokens: TokenFile) -> np.ndarray:
    return np.asarray(tokens.open())  # a plain view: every look into a `memmap` makes another one

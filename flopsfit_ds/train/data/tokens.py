"""From a corpus to one memory-mapped file of token ids, and the workload that trains a language model on it."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.base.storage import fsync_folder
from flopsfit_ds.base.usercode import import_class
from flopsfit_ds.data.corpus import Corpus
from flopsfit_ds.model.architecture import ClassShape, ModelShape
from flopsfit_ds.train.model import Decoder, next_token_losses

_CHUNK_IDS = 1 << 24
_SCANNED_CHUNKS = 32


@dataclass(frozen=True)
class TokenFile:
    """Token ids on disk.

    Attributes:
        path: `.npy`, or raw little-endian ids.
        dtype: `uint8`, `uint16` or `uint32`.
        num_tokens: All of them.
        heldout_tokens: At the end, kept out of training.
    """

    path: str
    dtype: str
    num_tokens: int
    heldout_tokens: int

    def open(self) -> np.ndarray:
        """The ids, memory-mapped, [num_tokens]."""
        if self.path.endswith(".npy"):
            return np.load(self.path, mmap_mode="r")
        return np.memmap(self.path, dtype=self.dtype, mode="r")


def prepare_tokens(corpus: Corpus, folder: Path, vocab_size: int) -> TokenFile:
    """Write a corpus as one file of ids (once; later calls find it), and see that every id is in the vocabulary.

    Args:
        corpus: What `find_corpus` found.
        folder: Where the file is written; a `tokens` corpus is used where it lies.
        vocab_size: Of the model.

    Raises:
        DataError: An id beyond the vocabulary, a text that is no UTF-8, or too few tokens.
    """
    if corpus.source == "tokens":
        assert corpus.num_tokens is not None
        tokens = TokenFile(corpus.files[0], corpus.dtype, corpus.num_tokens, corpus.heldout_tokens)
    else:
        dtype = corpus.dtype if corpus.tokenizer is None else "uint16" if vocab_size <= 2**16 else "uint32"
        path = folder / f"tokens-{corpus.fingerprint}-{dtype}.bin"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, _ids(corpus, dtype, vocab_size))
        num_tokens = path.stat().st_size // np.dtype(dtype).itemsize
        tokens = TokenFile(str(path), dtype, num_tokens, corpus.heldout_tokens)
    _check_ids(tokens, vocab_size)
    return tokens


def _write(path: Path, chunks: Iterator[np.ndarray]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk.tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _ids(corpus: Corpus, dtype: str, vocab_size: int) -> Iterator[np.ndarray]:
    if corpus.tokenizer is None:
        for name in corpus.files:
            yield np.fromfile(name, dtype=np.uint8)
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(corpus.tokenizer)
    except Exception as error:  # the library raises nothing more special
        raise DataError(f"data.tokenizer: {corpus.tokenizer} is no tokenizer.json: {error}") from None
    if tokenizer.get_vocab_size() > vocab_size:
        raise DataError(
            f"data.tokenizer: {corpus.tokenizer} has {tokenizer.get_vocab_size()} ids, more than model.vocab_size "
            f"{vocab_size}; set that to {tokenizer.get_vocab_size()} or more"
        )
    for name in corpus.files:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"data.paths: {name}: not UTF-8 ({error.reason} at byte {error.start})") from None
        yield np.asarray(tokenizer.encode(text).ids, dtype=dtype)


def _check_ids(tokens: TokenFile, vocab_size: int) -> None:
    """Look for ids beyond the vocabulary: in all of a file of half a billion ids, in even samples of a larger one."""
    if np.iinfo(tokens.dtype).max < vocab_size:
        return
    ids = tokens.open()
    num_chunks = -(-len(ids) // _CHUNK_IDS)
    for index in np.unique(np.linspace(0, num_chunks - 1, min(num_chunks, _SCANNED_CHUNKS)).astype(int)):
        chunk = ids[index * _CHUNK_IDS : (index + 1) * _CHUNK_IDS]
        largest = int(chunk.max())
        if largest >= vocab_size:
            position = int(index) * _CHUNK_IDS + int(chunk.argmax())
            raise DataError(
                f"{tokens.path}: id {largest} at position {position} is beyond model.vocab_size {vocab_size}; set "
                f"model.vocab_size to {largest + 1} or more, or check data.dtype ({tokens.dtype})"
            )


@dataclass(frozen=True)
class TokenWorkload:
    """A language model on a token file; samples are windows of `context_length` tokens and their successors.

    Attributes:
        shape: The built-in decoder, or a class of the user's called as `model(tokens) -> logits`.
        tokens: The ids.
    """

    shape: ModelShape | ClassShape
    tokens: TokenFile

    def __post_init__(self) -> None:
        if self.num_training_samples < 1 or self.num_heldout_samples < 1:
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
    def tokens_per_heldout_sample(self) -> int:
        """Tokens of a window."""
        return self.shape.context_length

    @property
    def draws_weights_in_constructors(self) -> bool:
        """True of the built-in decoder; unknown, hence False, of a user's class."""
        return isinstance(self.shape, ModelShape)

    @property
    def uses_every_parameter(self) -> bool:
        """True of the built-in decoder; unknown, hence False, of a user's class."""
        return isinstance(self.shape, ModelShape)

    def build_model(self, activation_checkpointing: bool) -> torch.nn.Module:
        """The decoder, or the user's class with its arguments."""
        if isinstance(self.shape, ModelShape):
            return Decoder(self.shape, activation_checkpointing)
        return import_class(self.shape.class_path)(**dict(self.shape.arguments))

    def training_batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, each [batch, context_length]."""
        return self._windows(indices * self.shape.context_length)

    def heldout_batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, each [batch, context_length]."""
        start = self.tokens.num_tokens - self.tokens.heldout_tokens
        return self._windows(start + indices * self.shape.context_length)

    def _windows(self, starts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        offsets = np.arange(self.shape.context_length + 1)
        windows = torch.from_numpy(_open(self.tokens)[starts[:, None] + offsets].astype(np.int64))
        return windows[:, :-1], windows[:, 1:]

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Cross-entropy in nats a token, over all tokens of the batch."""
        inputs, targets = batch
        return next_token_losses(model(inputs), targets).mean()

    def sample_losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Cross-entropy in nats a token of each window, [batch]."""
        inputs, targets = batch
        return next_token_losses(model(inputs), targets).mean(dim=1)

    def check_losses(self, model: torch.nn.Module, batch: Any) -> None:
        """Nothing to see: both are means of the same losses of tokens, and every window has equally many."""


@functools.lru_cache(maxsize=4)
def _open(tokens: TokenFile) -> np.ndarray:
    return tokens.open()

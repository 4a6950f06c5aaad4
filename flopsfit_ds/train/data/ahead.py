"""Batches built ahead, in processes of their own, while the step before is computed."""

from __future__ import annotations

import contextlib
import pickle
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.train.data.sampling import samples_of_run, share_of_rank
from flopsfit_ds.train.order import WorkerOrder, WorkerTask, Workload
from flopsfit_ds.train.seeding import seed_everything

_AHEAD = 2  # batches a process builds while none is asked for; one is handed over, one is in the making
_SEEDS = 2**60
"""Of a batch's draws; NumPy takes 64 bits with the rank's share on top."""


@dataclass(frozen=True)
class _Asked:
    """One micro-batch: its samples, and what a dataset's random numbers follow from."""

    indices: np.ndarray
    seed: int
    rank: int


class _Batches(Dataset):
    """Micro-batches, or the words of the error that one met, as bytes.

    Through a pipe: tensors would go through shared memory, of which a container has 64 MB by default.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    def __getitem__(self, asked: _Asked) -> bytes | DataError:
        if self._workload.draws_in_training:
            seed_everything(asked.seed, asked.rank)
        try:
            return pickle.dumps(self._workload.training_batch(asked.indices), pickle.HIGHEST_PROTOCOL)
        except DataError as error:
            return error


class BatchesAhead:
    """One rank's micro-batches of an attempt, in the order in which its loop takes them.

    Processes are forked before the dataset has been used here, so that no open file is shared; what a dataset draws at
    random follows from seed, step, rank and micro-batch, whatever the number of processes.

    Attributes:
        first_step: That they begin with.
    """

    def __init__(self, order: WorkerOrder, task: WorkerTask, first_step: int) -> None:
        """Start the processes.

        Args:
            order: Which rank this is, and how the global batch is split.
            task: What is trained, and by how many processes its data is read.
            first_step: Optimiser steps that are done.
        """
        self.first_step = first_step
        loader = DataLoader(
            _Batches(task.workload),
            sampler=_asked_for(order, task, first_step),  # pyright: ignore[reportArgumentType]
            batch_size=None,
            num_workers=task.data_workers,
            prefetch_factor=_AHEAD,
            collate_fn=_as_it_is,
            worker_init_fn=_outlive_signals,
            multiprocessing_context="fork",
        )
        self._batches = iter(loader)

    def read(self, indices: np.ndarray) -> Any:
        """The next micro-batch, which is of these samples.

        Raises:
            DataError: The dataset's own error, as it would be had without processes.
        """
        found = next(self._batches)
        if isinstance(found, DataError):
            raise found
        return pickle.loads(found)

    def close(self) -> None:
        """End the processes."""
        self._batches._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def built_ahead(order: WorkerOrder, task: WorkerTask, first_step: int) -> Iterator[BatchesAhead | None]:
    """Micro-batches of an attempt built ahead, until it ends; None where no processes are asked for.

    Arguments as of `BatchesAhead`.
    """
    if not task.data_workers or first_step == task.plan.num_steps:
        yield None
        return
    ahead = BatchesAhead(order, task, first_step)
    try:
        yield ahead
    finally:
        ahead.close()


def _asked_for(order: WorkerOrder, task: WorkerTask, first_step: int) -> Iterator[_Asked]:
    run = task.plan
    for step, samples in enumerate(samples_of_run(task, first_step), first_step):
        shares = share_of_rank(samples, order.rank, order.world_size, order.gradient_accumulation_steps)
        for number, indices in enumerate(shares):
            seed = ((run.seed * 1_000_003 + step) * 65_537 + number + 1) % _SEEDS
            yield _Asked(indices, seed, order.rank)


def _as_it_is(found: Any) -> Any:
    """In the place of what would make tensors of numbers and texts."""
    return found


def _outlive_signals(_number: int) -> None:
    """A cluster asks all processes of a job to stop, and the rank still needs batches up to its checkpoint."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

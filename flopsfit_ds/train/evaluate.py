"""The loss of a point: a mean over a fixed set of held-out samples, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from flopsfit_ds.train.checkpoint.files import Pulse
from flopsfit_ds.train.data.batches import to_device
from flopsfit_ds.train.order import Workload
from flopsfit_ds.train.seeding import seed_everything
from flopsfit_ds.train.session import Session

_SEED = 0x5EED
"""Arbitrary, and the same for all runs."""


@dataclass(frozen=True)
class HeldoutLoss:
    """A held-out loss.

    Attributes:
        mean: Nats a prediction.
        standard_error: Standard deviation over samples, over the root of their number; None for a single sample.
        num_predictions: Predictions it was measured on.
    """

    mean: float
    standard_error: float | None
    num_predictions: int


def check_evaluation(session: Session, workload: Workload, batch_size: int) -> None:
    """See on the first held-out samples, before anything is trained, that the loss can be measured at the end.

    A forward pass of all ranks, of at least two samples.

    Raises:
        DataError: It cannot.
    """
    indices = np.arange(max(2, batch_size)) % workload.num_heldout_samples
    session.engine.eval()
    with torch.no_grad():
        workload.check_losses(session.engine, to_device(workload.heldout_batch(indices), session.device))
    session.engine.train()


def heldout_loss(session: Session, workload: Workload, batch_size: int, pulse: Pulse) -> HeldoutLoss:
    """Measure the loss over all held-out samples, split over the ranks and reduced as sums in double precision.

    All ranks go through the same number of batches (a forward pass at ZeRO-3 is a collective); where samples run out, a
    rank repeats the first one with weight zero. `pulse` is told at each batch that the evaluation goes on.
    """
    rank, world_size = session.accelerator.process_index, session.accelerator.num_processes
    total = workload.num_heldout_samples
    num_batches = math.ceil(total / (world_size * batch_size))
    sums = torch.zeros(3, dtype=torch.float64, device=session.device)
    seed_everything(_SEED, rank)  # of a dataset that draws: the same samples whenever it is measured
    session.engine.eval()
    with torch.no_grad():
        for number in range(num_batches):
            pulse("eval")
            first = (number * world_size + rank) * batch_size
            indices = np.arange(first, first + batch_size)
            weights = torch.from_numpy((indices < total).astype(np.float64)).to(session.device)
            batch = to_device(workload.heldout_batch(np.where(indices < total, indices, 0)), session.device)
            losses = workload.sample_losses(session.engine, batch).double()
            sums += torch.stack((weights.sum(), (weights * losses).sum(), (weights * losses**2).sum()))
    session.engine.train()
    if world_size > 1:
        dist.all_reduce(sums)
    count, first_moment, second_moment = sums.tolist()
    mean = first_moment / count
    standard_error = None
    if count > 1 and math.isfinite(mean):
        variance = max(0.0, (second_moment - count * mean**2) / (count - 1))
        standard_error = math.sqrt(variance / count)
    return HeldoutLoss(mean, standard_error, round(count) * workload.tokens_per_heldout_sample)

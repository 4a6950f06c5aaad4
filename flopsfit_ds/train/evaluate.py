"""The loss of a point: a mean over a fixed set of held-out samples, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from flopsfit_ds.train.checkpoint.files import Pulse
from flopsfit_ds.train.data.outputs import to_device
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
        standard_error: Of that mean, by the scatter of samples; None for a single sample.
        num_predictions: Predictions it was measured on; masked targets are none.
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
    rank repeats the first one with weight zero. Where the loss of a sample depends on the others of its batch, only
    whole batches count, and the rest is left out. `pulse` is told at each batch that the evaluation goes on.

    The standard error is that of a ratio of means (Cochran, 1977, equation 6.9): samples may count differently.
    """
    rank, world_size = session.accelerator.process_index, session.accelerator.num_processes
    total = workload.num_heldout_samples
    if workload.needs_whole_batches:
        batch_size = min(batch_size, total)
        total -= total % batch_size
    num_batches = math.ceil(total / (world_size * batch_size))
    sums = torch.zeros(7, dtype=torch.float64, device=session.device)
    seed_everything(_SEED, rank, session.device)  # of a dataset that draws: the same samples whenever it is measured
    session.engine.eval()
    with torch.no_grad():
        for number in range(num_batches):
            pulse("eval")
            first = (number * world_size + rank) * batch_size
            indices = np.arange(first, first + batch_size)
            real = torch.from_numpy((indices < total).astype(np.float64)).to(session.device)
            batch = to_device(workload.heldout_batch(np.where(indices < total, indices, 0)), session.device)
            weights = real * workload.heldout_weights(batch)
            losses = workload.sample_losses(session.engine, batch).double()
            losses = torch.where(weights > 0, losses, 0.0)  # that of a sample without a target is no number
            weighted, targets = weights * losses, real * workload.num_targets(batch)
            terms = (weights, weighted, weighted**2, weights * weighted, weights**2, weights > 0, targets)
            sums += torch.stack([term.sum() for term in terms])
    session.engine.train()
    if world_size > 1:
        dist.all_reduce(sums)
    weight, first_moment, squares, crossed, squared_weights, count, targets = sums.tolist()
    if not weight:
        return HeldoutLoss(math.nan, None, 0)
    mean = first_moment / weight
    standard_error = None
    if count > 1 and math.isfinite(mean):
        scatter = max(0.0, squares - 2 * mean * crossed + mean**2 * squared_weights)
        standard_error = math.sqrt(scatter * count / (count - 1)) / weight
    return HeldoutLoss(mean, standard_error, round(targets))

"""What each micro-batch counts in a step: as many times as it holds targets, over all micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.train.order import Workload

if TYPE_CHECKING:
    from flopsfit_ds.train.session import Session


def weighted_batches(
    workload: Workload,
    read: Callable[[np.ndarray], Any],
    micro_batches: np.ndarray,
    session: Session,
    pulse: Callable[[str], None],
    phase: str,
) -> Iterator[tuple[Any, float]]:
    """The micro-batches of a step, in host memory, each with the factor of its loss.

    DeepSpeed divides a loss by the number of micro-batches M and averages gradients over the ranks R. A mean over
    targets is asked for: micro-batch i, with n_i of all N targets of the step, counts n_i / N instead of 1 / (M R), so
    that its factor is n_i M R / N; exactly 1 where all hold equally many. N is known only once all are read, and each
    rank holds its share of the global batch until then. `read` gives the batch of so many samples.

    Raises:
        DataError: The step has no target.
    """
    if not workload.counts_targets:
        for indices in micro_batches:
            yield read(indices), 1.0
        return
    batches = []
    for indices in micro_batches:
        pulse(phase)
        batches.append(read(indices))
    counts = [int(workload.num_targets(batch).sum()) for batch in batches]
    world_size = session.accelerator.num_processes
    total = torch.tensor(float(sum(counts)), dtype=torch.float64, device=session.device)
    if world_size > 1:
        dist.all_reduce(total)
    if not total:
        raise DataError(f"dataset: no sample of a global batch has a target (step {phase}); all are masked")
    for batch, count in zip(batches, counts, strict=True):
        yield batch, count * len(batches) * world_size / total.item()


def weighted_loss(workload: Workload, engine: Any, batch: Any, weight: float) -> torch.Tensor:
    """The loss of a micro-batch, times what it counts."""
    if weight == 1.0:
        return workload.loss(engine, batch)
    return weight * workload.loss(engine, batch) if weight else workload.empty_loss(engine, batch)

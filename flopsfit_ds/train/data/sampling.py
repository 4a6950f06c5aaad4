"""Which samples a step trains on: a function of seed and step alone, whatever the number of GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from flopsfit_ds.train.order import WorkerTask

_POSITIONS_AT_ONCE = 4096  # 0.3 ms of one core, where one step of two samples alone takes 0.15 ms
_ROUNDS = 6  # four make a strong permutation (Luby and Rackoff, 1988), two more for small sizes; part of every loss
_MAX_SOURCES = 1024  # sources have phases and keys of their own up to here
_KEYS_A_SOURCE = 1 << 53  # above all of seed * 1,000,003 + pass; times _MAX_SOURCES the 63 bits of a key
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of SplitMix64


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection of 64-bit words that scatters their bits."""
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))


def permute(positions: np.ndarray, size: int, key: int) -> np.ndarray:
    """A pseudo-random permutation of 0..size-1, evaluated at `positions` only.

    A Feistel network on the smallest even number of bits that holds `size`; values beyond are sent through again until
    they fall inside (cycle walking; Black and Rogaway, 2002). Nothing of the length of `size` is ever stored.
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    keys = _mix(np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key % 2**63))
    values = positions.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        left, right = values[outside] >> shift, values[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        values[outside] = (left << shift) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def samples_of_step(step: int, global_batch: int, num_samples: int, seed: int) -> np.ndarray:
    """Numbers of the training samples of one optimiser step, [global_batch].

    Every sample is seen once before any is seen again; each pass over the data has an order of its own.
    """
    return _samples_of_steps(step, 1, global_batch, num_samples, seed)[0]


@dataclass(frozen=True)
class Mixture:
    """Samples of several sources, numbered one source after another, and the share of each.

    Attributes:
        names: Of the sources.
        weights: Whole numbers of at most 10^9 together, in proportion to the shares.
        sizes: Training samples of each.
    """

    names: tuple[str, ...]
    weights: tuple[int, ...]
    sizes: tuple[int, ...]

    def taken(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """How many samples of each source are among the first `positions` of a run, [sources, len(positions)].

        The first source has floor((w p + phase) / W) of p samples, the second the like of those that are left, and so
        on. After every W samples, W the sum of the weights, each source has its weight exactly; between, it is less
        than the number of sources away. Whole numbers throughout: no product has more than 60 bits.
        """
        counts, left, rest = [], positions.astype(np.int64), sum(self.weights)
        for number, weight in enumerate(self.weights[:-1]):
            phase = int(_mix(np.array([seed * _MAX_SOURCES + number], dtype=np.uint64))[0] % np.uint64(rest))
            whole, part = np.divmod(left, rest)
            counts.append(weight * whole + (weight * part + phase) // rest)
            left, rest = left - counts[-1], rest - weight
        return np.stack([*counts, left])

    def samples_at(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """Numbers of the samples at these positions of a run, [len(positions)].

        Each source goes through all its samples before any is seen again, in an order of its own.
        """
        before = self.taken(positions, seed)
        source = (self.taken(positions + 1, seed) - before).argmax(axis=0)
        chosen = np.empty(len(positions), dtype=np.int64)
        for number in np.unique(source):
            here, size = source == number, self.sizes[number]
            found = _in_passes(before[number, here], size, seed, int(number))
            chosen[here] = sum(self.sizes[:number]) + found
        return chosen


def samples_of_steps(
    first: int, end: int, global_batch: int, num_samples: int, seed: int, mixture: Mixture | None = None
) -> Iterator[np.ndarray]:
    """The samples of steps `first` to `end - 1`, one step after another, found for many steps at a time."""
    at_once = max(1, _POSITIONS_AT_ONCE // global_batch)
    for step in range(first, end, at_once):
        yield from _samples_of_steps(step, min(at_once, end - step), global_batch, num_samples, seed, mixture)


def samples_of_run(task: WorkerTask, first_step: int) -> Iterator[np.ndarray]:
    """The samples of a run's steps from `first_step` on, each [global batch]."""
    run, workload = task.plan, task.workload
    batch_size, num_samples = run.global_batch_sequences, workload.num_training_samples
    return samples_of_steps(first_step, run.num_steps, batch_size, num_samples, run.seed, workload.mixture)


def _samples_of_steps(
    step: int, num_steps: int, global_batch: int, num_samples: int, seed: int, mixture: Mixture | None = None
) -> np.ndarray:
    positions = np.arange(step * global_batch, (step + num_steps) * global_batch, dtype=np.int64)
    chosen = _in_passes(positions, num_samples, seed) if mixture is None else mixture.samples_at(positions, seed)
    return chosen.reshape(num_steps, global_batch)


def _in_passes(positions: np.ndarray, num_samples: int, seed: int, source: int = 0) -> np.ndarray:
    passes, within = np.divmod(positions, num_samples)
    chosen = np.empty(len(positions), dtype=np.int64)
    for number in np.unique(passes):
        here, key = passes == number, seed * 1_000_003 + int(number) + source * _KEYS_A_SOURCE
        chosen[here] = permute(within[here], num_samples, key)
    return chosen


def share_of_rank(samples: np.ndarray, rank: int, world_size: int, num_micro_batches: int) -> np.ndarray:
    """One rank's part of a global batch, [micro-batches, samples each]; all ranks together cover it exactly once."""
    return samples.reshape(num_micro_batches, world_size, -1)[:, rank]

"""Which samples a step trains on: a function of seed and step alone, whatever the number of GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_POSITIONS_AT_ONCE = 4096  # 0.3 ms of one core, where one step of two samples alone takes 0.15 ms
_ROUNDS = 6  # four make a strong permutation (Luby and Rackoff, 1988), two more for small sizes; part of every loss
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


def samples_of_steps(first: int, end: int, global_batch: int, num_samples: int, seed: int) -> Iterator[np.ndarray]:
    """The samples of steps `first` to `end - 1`, one step after another, found for many steps at a time."""
    at_once = max(1, _POSITIONS_AT_ONCE // global_batch)
    for step in range(first, end, at_once):
        yield from _samples_of_steps(step, min(at_once, end - step), global_batch, num_samples, seed)


def _samples_of_steps(step: int, num_steps: int, global_batch: int, num_samples: int, seed: int) -> np.ndarray:
    positions = np.arange(step * global_batch, (step + num_steps) * global_batch, dtype=np.int64)
    passes, within = np.divmod(positions, num_samples)
    chosen = np.empty(len(positions), dtype=np.int64)
    for number in np.unique(passes):
        here = passes == number
        chosen[here] = permute(within[here], num_samples, seed * 1_000_003 + int(number))
    return chosen.reshape(num_steps, global_batch)


def share_of_rank(samples: np.ndarray, rank: int, world_size: int, num_micro_batches: int) -> np.ndarray:
    """One rank's part of a global batch, [micro-batches, samples each]; all ranks together cover it exactly once."""
    return samples.reshape(num_micro_batches, world_size, -1)[:, rank]

"""What an optimiser holds of a model: bytes of its states by kind of tensor."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

ADAMW_BYTES = 8  # two moments in fp32
_MOMENTUM_BYTES = 4
_EIGHT_BIT_BYTES = 2 + 2 * 4 / 256  # two moments, and for each of both a scale in fp32 for 256 elements
_LEAST_FOR_EIGHT_BIT = 4096
"""Elements of a tensor, from which on bitsandbytes keeps 8 bits (`min_8bit_size` of its `Optimizer2State`)."""


@dataclass(frozen=True)
class StateTensor:
    """One trained tensor as an optimiser sees it.

    Attributes:
        num_elements: Of the tensor.
        edges: Elements of a vector a row and a vector a column, over all matrices in it; 0 for vectors.
        group: Tensors of equal ones are one group of the optimiser.
        orthogonal: Whether Muon takes it.
    """

    num_elements: int
    edges: int
    group: Hashable
    orthogonal: bool


@dataclass(frozen=True)
class GroupSize:
    """One group of an optimiser, which ZeRO-1 and 2 part by itself.

    Attributes:
        num_params: In all of its tensors.
        largest: Of them.
        orthogonal: Whether Muon takes it.
    """

    num_params: int
    largest: int
    orthogonal: bool

    def reaching_into_a_share(self, world_size: int) -> int:
        """Most that the tensors hold which reach into one rank's share."""
        if world_size == 1:
            return self.num_params
        return min(self.num_params, math.ceil(self.num_params / world_size) + self.largest)


@dataclass(frozen=True)
class OptimizerMemory:
    """States of a whole model, before ZeRO parts them.

    Attributes:
        state_bytes: Of all tensors.
        groups: Of the optimiser, where they are not those of AdamW: matrices, and all else.
    """

    state_bytes: int
    groups: tuple[GroupSize, ...] = ()

    @property
    def orthogonal_params(self) -> int:
        """In matrices that Muon takes."""
        return sum(group.num_params for group in self.groups if group.orthogonal)


def optimizer_memory(
    name: str, tensors: Sequence[StateTensor], bytes_an_element: tuple[float, float] | None = None
) -> OptimizerMemory:
    """States of a model under an optimiser of this package.

    Args:
        name: Of the optimiser.
        tensors: All that is trained.
        bytes_an_element: Of matrices and of vectors, as counted of a user's own optimiser.
    """
    return OptimizerMemory(_state_bytes(name, tensors, bytes_an_element), _groups(tensors))


def _groups(tensors: Sequence[StateTensor]) -> tuple[GroupSize, ...]:
    found: dict[tuple[Hashable, bool], list[int]] = {}
    for tensor in tensors:
        found.setdefault((tensor.group, tensor.orthogonal), []).append(tensor.num_elements)
    usual = {bool(tensor.edges): tensor.group for tensor in tensors}
    if len(found) <= len(usual) and not any(orthogonal for _, orthogonal in found):
        return ()
    return tuple(GroupSize(sum(sizes), max(sizes), orthogonal) for (_, orthogonal), sizes in found.items())


def _state_bytes(name: str, tensors: Sequence[StateTensor], bytes_an_element: tuple[float, float] | None) -> int:
    total = sum(tensor.num_elements for tensor in tensors)
    if bytes_an_element is not None:
        in_matrices = sum(tensor.num_elements for tensor in tensors if tensor.edges)
        of_matrices, of_vectors = bytes_an_element
        return round(of_matrices * in_matrices + of_vectors * (total - in_matrices))
    if name == "muon":
        taken = [tensor.num_elements for tensor in tensors if tensor.orthogonal]
        return _MOMENTUM_BYTES * sum(taken) + ADAMW_BYTES * (total - sum(taken))
    if name == "adafactor":
        return sum(_MOMENTUM_BYTES * (tensor.edges or tensor.num_elements) for tensor in tensors)
    if name == "lion":
        return _MOMENTUM_BYTES * total
    if name == "adamw8bit":
        narrow = sum(tensor.num_elements for tensor in tensors if tensor.num_elements >= _LEAST_FOR_EIGHT_BIT)
        return round(_EIGHT_BIT_BYTES * narrow) + ADAMW_BYTES * (total - narrow)
    return ADAMW_BYTES * total

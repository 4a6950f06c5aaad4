"""What a simulation answers; without torch, so that an answer can be read where none is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PhasePeak:
    """The peak of one phase of the last simulated step.

    Attributes:
        phase: `start`, `forward`, `backward` or `step`.
        peak_bytes: On the device.
        host_peak_bytes: On the host; 0 where device and host are one.
    """

    phase: str
    peak_bytes: int
    host_peak_bytes: int


@dataclass(frozen=True)
class ModelSizes:
    """Numbers of parameters.

    Attributes:
        total: All.
        trainable: With a gradient.
        largest_tensor: Of the largest tensor.
        block_largest_tensor: Of the largest tensor of the repeated blocks.
    """

    total: int
    trainable: int
    largest_tensor: int
    block_largest_tensor: int


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank.

    Attributes:
        rank: Which.
        world_size: Of how many.
        peak_bytes: Most on the device over the whole of it.
        end_bytes: On the device after the last step.
        host_peak_bytes: Most on the host.
        peak_phase: When the device's peak was reached.
        peak_operation: The operation that reached it.
        peak_module: The module it belongs to.
        components: Bytes at the peak by category; they sum to it.
        phases: Peaks of the phases.
        sizes: Of the model.
        seconds: What the simulation took.
    """

    rank: int
    world_size: int
    peak_bytes: int
    end_bytes: int
    host_peak_bytes: int
    peak_phase: str
    peak_operation: str
    peak_module: str
    components: dict[str, int]
    phases: tuple[PhasePeak, ...]
    sizes: ModelSizes
    seconds: float

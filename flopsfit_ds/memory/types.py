"""What a memory estimate is: a strategy, bytes by component, and what lies outside the allocator."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from flopsfit_ds.base.presets import Offload, Precision

Phase = Literal["start", "forward", "backward", "step"]


@dataclass(frozen=True)
class Strategy:
    """How one run is laid out over its GPUs.

    Attributes:
        zero_stage: ZeRO stage, 0 to 3.
        num_gpus: World size.
        micro_batch_size_per_gpu: Sequences a GPU takes at once.
        activation_checkpointing: Blocks are recomputed in the backward pass.
        offload: What lives in host memory.
        precision: `bf16` is autocast over fp32 parameters; `bf16-pure` has parameters and gradients in bf16.
        communication: What crosses between GPUs of linear layers.
        deepspeed: Keys of DeepSpeed's over those that a plan writes, as JSON; empty for none.
    """

    zero_stage: Literal[0, 1, 2, 3]
    num_gpus: int
    micro_batch_size_per_gpu: int
    activation_checkpointing: bool
    offload: Offload
    precision: Precision
    communication: Literal["fp32", "bf16"] = "fp32"
    deepspeed: str = ""

    def identity(self) -> dict[str, str]:
        """What of it can change a loss by more than the order of sums; nothing of what was not asked for."""
        asked = {} if self.communication == "fp32" else {"communication": self.communication}
        return asked | ({"deepspeed": self.deepspeed} if self.deepspeed else {})

    @property
    def weight_bytes(self) -> int:
        """Of an element of a parameter, and of its gradient."""
        return 2 if self.precision == "bf16-pure" else 4

    @property
    def label(self) -> str:
        """For people: `ZeRO-2 on 4 GPUs`, with offload and checkpointing where they are used."""
        gpus = f"{self.num_gpus} GPU{'s' if self.num_gpus > 1 else ''}"
        offload = " with optimizer offload" if self.offload == "optimizer" else ""
        checkpointing = " and checkpointing" if self.activation_checkpointing else ""
        return f"ZeRO-{self.zero_stage}{offload} on {gpus}{checkpointing}"


@dataclass(frozen=True)
class MemoryComponents:
    """Bytes on the device at the moment of the peak, by what they hold; they sum to the peak exactly.

    Attributes:
        parameters: The model's parameters, or this rank's share of them at ZeRO-3.
        gathered_parameters: Whole parameters gathered for use at ZeRO-3; under autocast, weights cast to bf16.
        gradients: Of parameters, or this rank's share of them.
        master_weights: The optimiser's own fp32 copy of this rank's share.
        optimizer_states: AdamW's two moments.
        communication_buckets: Buffers of collectives.
        saved_activations: What the backward pass needs of the forward pass.
        logits_and_loss: Logits, their softmax and gradients of both.
        transients: Short-lived tensors of an operation, of the backward pass or of the optimiser's step.
        library_workspaces: cuBLAS workspaces, which PyTorch takes from its own allocator; 0 on a CPU.
    """

    parameters: int
    gathered_parameters: int
    gradients: int
    master_weights: int
    optimizer_states: int
    communication_buckets: int
    saved_activations: int
    logits_and_loss: int
    transients: int
    library_workspaces: int

    @property
    def total(self) -> int:
        """Sum of all components."""
        return (
            self.parameters
            + self.gathered_parameters
            + self.gradients
            + self.master_weights
            + self.optimizer_states
            + self.communication_buckets
            + self.saved_activations
            + self.logits_and_loss
            + self.transients
            + self.library_workspaces
        )

    def items(self) -> list[tuple[str, int]]:
        """Name and bytes of each component."""
        return [(name, getattr(self, name)) for name in COMPONENT_NAMES]


COMPONENT_NAMES: tuple[str, ...] = tuple(field.name for field in fields(MemoryComponents))


@dataclass(frozen=True)
class MarginLine:
    """Memory that no tensor accounts for.

    Attributes:
        name: What takes it.
        num_bytes: How much.
        layer: `reserved`: held by PyTorch's allocator beside live tensors; `device`: outside the allocator.
        source: Where the number comes from.
    """

    name: str
    num_bytes: int
    layer: Literal["reserved", "device"]
    source: str


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of the worst rank, with three numbers kept apart: allocated, reserved, and taken of the device.

    Attributes:
        components: Bytes at the peak by component.
        peak_phase: When the peak is reached.
        peak_allocated_bytes: `torch.cuda.max_memory_allocated`.
        peak_reserved_bytes: What the allocator holds, fragmentation included.
        device_total_bytes: What must be free on the device.
        margin: The lines between the three numbers.
        host_bytes: Host memory of one rank; 0 without offload.
        method: Closed form, or simulated with the real engine.
    """

    components: MemoryComponents
    peak_phase: Phase
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    device_total_bytes: int
    margin: tuple[MarginLine, ...]
    host_bytes: int
    method: Literal["closed-form", "simulation"]


def assemble_estimate(
    components: MemoryComponents,
    peak_phase: Phase,
    margin: tuple[MarginLine, ...],
    host_bytes: int,
    method: Literal["closed-form", "simulation"],
) -> MemoryEstimate:
    """Add a margin to components."""
    allocated = components.total
    reserved = allocated + sum(line.num_bytes for line in margin if line.layer == "reserved")
    device = reserved + sum(line.num_bytes for line in margin if line.layer == "device")
    return MemoryEstimate(components, peak_phase, allocated, reserved, device, margin, host_bytes, method)

"""What the engine hands to a worker: an order that crosses a network as JSON, and the task that it is about.

Imports no torch: the scheduler, and launched ranks that only lend their slot, read this module too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flopsfit_ds.base.presets import Offload
from flopsfit_ds.plan.sweep_plan import RunPlan

if TYPE_CHECKING:
    import numpy as np
    import torch

    from flopsfit_ds.data.manifest import WatchedFile
    from flopsfit_ds.train.data.sampling import Mixture

EXIT_OUTCOME_WRITTEN = 0  # success
EXIT_FAILED = 1  # Python's own for an exception
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same again goes on
EXIT_OUT_OF_MEMORY = 76  # the next one, which nothing here means by itself


@dataclass(frozen=True)
class WorkerOrder:
    """One rank of one attempt at a run.

    Attributes:
        run_folder: Folder of the run.
        attempt: 1 for the first.
        rank: Of the attempt's process group.
        world_size: Ranks of the attempt.
        local_rank: Rank on this host.
        local_world_size: Ranks on this host.
        device_index: CUDA device, counted among the visible ones; None on a CPU.
        store_host: Host of the rendezvous store.
        store_port: Its port.
        num_threads: CPU threads of this rank.
        zero_stage: ZeRO stage of this attempt; after an out-of-memory it may differ from the plan's.
        offload: What lives in host memory.
        micro_batch_size_per_gpu: Sequences.
        gradient_accumulation_steps: Micro-batches an optimiser step.
        activation_checkpointing: Whether activations are recomputed.
    """

    run_folder: str
    attempt: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device_index: int | None
    store_host: str
    store_port: int
    num_threads: int
    zero_stage: int
    offload: Offload
    micro_batch_size_per_gpu: int
    gradient_accumulation_steps: int
    activation_checkpointing: bool


class Workload(Protocol):
    """What is trained: model, samples and loss. Picklable; holds no open file and no weights.

    A batch is whatever `training_batch` returns, moved to the device as a tree of tensors.
    """

    @property
    def num_training_samples(self) -> int:
        """Samples to train on."""
        ...

    @property
    def num_heldout_samples(self) -> int:
        """Samples the loss of the run is measured on."""
        ...

    @property
    def mixture(self) -> Mixture | None:
        """How samples are drawn where they are of several sources; None where they are of one."""
        ...

    @property
    def draws_weights_in_constructors(self) -> bool:
        """Whether every layer draws its weights in its own constructor, as partitioned construction needs."""
        ...

    @property
    def draws_in_training(self) -> bool:
        """Whether a step may draw random numbers: the model, its loss, or a sample that is read."""
        ...

    @property
    def uses_every_parameter(self) -> bool:
        """Whether every trained parameter has a gradient after each backward pass."""
        ...

    @property
    def counts_targets(self) -> bool:
        """Whether the loss is a mean over targets of which batches hold different numbers."""
        ...

    @property
    def needs_whole_batches(self) -> bool:
        """Whether the loss of a sample depends on the others of its batch."""
        ...

    def build_model(self, activation_checkpointing: bool) -> torch.nn.Module:
        """The model, its weights drawn from torch's generator."""
        ...

    def training_batch(self, indices: np.ndarray) -> Any:
        """The training samples of these numbers, collated."""
        ...

    def heldout_batch(self, indices: np.ndarray) -> Any:
        """The held-out samples of these numbers, collated."""
        ...

    def num_targets(self, batch: Any) -> torch.Tensor:
        """Targets of each sample of a batch that its loss is a mean over, [batch]."""
        ...

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Mean loss of a batch, a scalar."""
        ...

    def empty_loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Zero, with gradients of zero, for a batch without a target: its mean would be no number."""
        ...

    def sample_losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Mean loss of each sample of a batch, [batch]."""
        ...

    def heldout_weights(self, batch: Any) -> torch.Tensor:
        """What each sample counts in the held-out loss, [batch]."""
        ...

    def check_losses(self, model: torch.nn.Module, batch: Any) -> None:
        """See that `loss` and `sample_losses` of a batch agree, where a user's own function could make them differ.

        Raises:
            DataError: They do not.
        """
        ...


@dataclass(frozen=True)
class HeldoutSet:
    """A further set whose loss is measured when a run ends.

    Attributes:
        name: Of the spec.
        workload: Whose held-out samples they are.
        bytes_per_token: Bytes of text a token; None where they are not known.
    """

    name: str
    workload: Workload
    bytes_per_token: float | None


@dataclass(frozen=True)
class WorkerTask:
    """What a run trains; the same for all its ranks and attempts.

    Attributes:
        plan: The run.
        workload: Model, data and loss.
        checkpoint_every_seconds: Time between checkpoints.
        peak_flops: Dense FLOP/s of one device, for the utilisation; None where unknown.
        sweep_folder: Whose key signs the run's checkpoints; None for a run without a sweep.
        trust_shared_folder: Whether checkpoints are loaded whoever could have written them.
        compiled: Whether the blocks of the built-in decoder are compiled.
        bytes_per_token: Bytes of text a held-out token; None where they are not known.
        heldout_sets: Measured when the run ends, beside the workload's own.
        data_workers: Processes of each rank that build batches ahead; 0 for none.
        hang_timeout_seconds: Silence after which the engine ends a run; a collective waits longer than that.
        watched: Files of the user's own that it reads: looked at before each checkpoint and at the end.
    """

    plan: RunPlan
    workload: Workload
    checkpoint_every_seconds: float
    peak_flops: float | None
    sweep_folder: str | None = None
    trust_shared_folder: bool = False
    hang_timeout_seconds: float = 600.0
    compiled: bool = False
    bytes_per_token: float | None = None
    heldout_sets: tuple[HeldoutSet, ...] = ()
    data_workers: int = 0
    watched: tuple[WatchedFile, ...] = ()

    def check_files(self) -> None:
        """See that nothing that the run reads was changed under it.

        Raises:
            DataChangedError: Something was.
        """
        for file in self.watched:
            file.check()


Tasks = Callable[[RunPlan], WorkerTask]
"""The task of a run, as its workers get it; picklable."""

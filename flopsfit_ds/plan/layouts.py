"""The ways to lay a run out over GPUs: what the rules allow, what fits, and how long a step would take."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.base.presets import Offload, Precision
from flopsfit_ds.base.units import GIB, MIB, format_bytes
from flopsfit_ds.memory import ModelProfile, Strategy
from flopsfit_ds.memory.closed_form import host_bytes, peak_components, profile_margin
from flopsfit_ds.memory.margin import workspace_bytes
from flopsfit_ds.plan.step_time import step_seconds
from flopsfit_ds.spec import PlacementRules

_NEAR_BATCH = 0.25
"""A batch within this is nearly the same to a learning rate: its optimum goes with the root, by 12%."""
CLEARLY_FITS = 0.85
"""Share of the device. Below it the answer stays the same, were the closed forms five times as far below the simulation
as has been seen (`ERROR_OF_DECODERS`)."""
_PROCESS_BYTES = 3 * GIB
"""Of the host: PyTorch with CUDA, and the data."""
_MAX_FALLBACKS = 6
"""Each is one more start after an out-of-memory; six halvings bring the default's largest micro-batch, 64, to 1."""
_INDIFFERENCE = 0.05
"""Of GPU-seconds: a quarter of public runs are further than twice this from their prediction (`step_time`). Chosen."""


@dataclass(frozen=True)
class Layout:
    """One way to lay a run out over GPUs, with what it needs and how fast it should be.

    Attributes:
        strategy: ZeRO stage, GPUs, micro-batch, checkpointing, offload: what memory and speed follow from.
        gradient_accumulation_steps: Micro-batches of a step.
        peak_allocated_bytes: Predicted, on the worst rank.
        device_total_bytes: With the margin.
        host_bytes: Of one rank.
        predicted_step_seconds: One optimiser step.
    """

    strategy: Strategy
    gradient_accumulation_steps: int
    peak_allocated_bytes: int
    device_total_bytes: int
    host_bytes: int
    predicted_step_seconds: float

    @property
    def num_slots(self) -> int:
        """Slots of a sweep that it takes: one a GPU, or one a rank on a CPU."""
        return self.strategy.num_gpus

    @property
    def gpu_seconds(self) -> float:
        """Of one optimiser step, over all GPUs."""
        return self.predicted_step_seconds * self.strategy.num_gpus


def bytes_of(need: int, available: int) -> str:
    """`92.1 of 79.1 GiB`, in the unit of what is available."""
    unit, name = (GIB, "GiB") if available >= GIB else (MIB, "MiB")
    return f"{need / unit:.1f} of {available / unit:.1f} {name}"


def rank_layouts(layouts: list[Layout]) -> list[Layout]:
    """Best first: fewest GPU-seconds; within a few percent of the fewest, the simplest; then the fastest.

    The step times are not exact enough for a hair's breadth to buy a higher stage or more GPUs.
    """
    fewest = min((layout.gpu_seconds for layout in layouts), default=0.0)

    def key(layout: Layout) -> tuple[float, int, int, bool, bool, float]:
        strategy = layout.strategy
        excess = layout.gpu_seconds / fewest
        return (
            1.0 if excess <= 1 + _INDIFFERENCE else excess,
            strategy.num_gpus,
            strategy.zero_stage,
            strategy.offload != "none",
            strategy.activation_checkpointing,
            layout.predicted_step_seconds,
        )

    return sorted(layouts, key=key)


@dataclass(frozen=True)
class Search:
    """All ways to lay one run out. Equal searches are best shared: each keeps what it has worked out."""

    profile: ModelProfile
    flops_per_sequence: float
    global_batch: int
    precision: Precision
    cluster: Cluster
    rules: PlacementRules
    micro_batch_size_per_gpu: int | None = None
    """The only one there is; None where any may be chosen."""
    _known: dict[tuple[int, Offload, int, bool, int], Layout] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def best_of_each_layout(self, share: float = 1.0) -> list[Layout]:
        """For every stage, number of GPUs and checkpointing, the largest micro-batch that fits into this share.

        Where offload is allowed, it is the last resort: a host's optimiser is slower than its prediction more often
        than not.
        """
        stages = list(self.stages())
        found = self._best_of_each((entry for entry in stages if entry[1] == "none"), share)
        return found or self._best_of_each((entry for entry in stages if entry[1] != "none"), share)

    def _best_of_each(self, stages: Iterable[tuple[int, Offload]], share: float) -> list[Layout]:
        layouts = (
            self._largest_micro_batch(stage, offload, num_gpus, checkpointing, share)
            for num_gpus, (stage, offload), checkpointing in itertools.product(
                self.gpu_counts(), stages, self.checkpointing()
            )
        )
        return [layout for layout in layouts if layout is not None]

    def with_room_for_others(self, layout: Layout) -> Layout:
        """A layout on one GPU with the micro-batch that lets as many points share the GPU as the rules allow."""
        strategy = layout.strategy
        if strategy.num_gpus == 1:
            for sharing in range(self.rules.points_per_gpu, 1, -1):
                smaller = self._largest_micro_batch(
                    strategy.zero_stage, strategy.offload, 1, strategy.activation_checkpointing, 1 / sharing
                )
                if smaller is not None:
                    return smaller
        return layout

    def layout(self, zero_stage: int, offload: Offload, num_gpus: int, checkpointing: bool) -> Layout:
        """A layout at the smallest micro-batch, whether it fits or not."""
        smallest = self.micro_batch_size_per_gpu or 1
        return self._layout(zero_stage, offload, num_gpus, checkpointing, smallest)

    def fits(self, layout: Layout, share: float = 1.0) -> bool:
        """Whether host and this share of the device hold a layout."""
        on_node = min(layout.strategy.num_gpus, self.cluster.gpus_per_node)
        host = _host_need(layout) * on_node
        on_device = layout.device_total_bytes <= share * self.cluster.device_memory_bytes
        return on_device and host <= self.cluster.host_memory_bytes

    def need(self, layout: Layout) -> str:
        """What a layout that does not fit asks for, beside what there is."""
        cluster = self.cluster
        if not self.device_fits(layout.device_total_bytes):
            return f"{bytes_of(layout.device_total_bytes, cluster.device_memory_bytes)} a GPU"
        return (
            f"{format_bytes(_host_need(layout))} of host memory a GPU, a node has "
            f"{format_bytes(cluster.host_memory_bytes)} for {cluster.gpus_per_node} GPUs"
        )

    def fallbacks(self, chosen: Layout) -> tuple[Layout, ...]:
        """Smaller micro-batches first, then other layouts on as many GPUs, each needing less than the one before."""
        strategy = chosen.strategy
        count = strategy.num_gpus
        tried = [
            self._layout(strategy.zero_stage, strategy.offload, count, strategy.activation_checkpointing, size)
            for size in self._micro_batches(count)
            if size < strategy.micro_batch_size_per_gpu
        ]
        for checkpointing in self.checkpointing():
            for stage, offload in self.stages():
                if stage >= strategy.zero_stage:
                    tried.append(self.layout(stage, offload, count, checkpointing))
        kept: list[Layout] = []
        for layout in tried:
            limit = kept[-1] if kept else chosen
            if layout.device_total_bytes < limit.device_total_bytes and self.fits(layout):
                kept.append(layout)
        return tuple(kept[:_MAX_FALLBACKS])

    def device_fits(self, num_bytes: int) -> bool:
        """Whether a device holds so much."""
        return num_bytes <= self.cluster.device_memory_bytes

    def gpu_counts(self) -> list[int]:
        """Numbers of GPUs that the rules allow, the cluster has, and the global batch divides by."""
        total, node = self.cluster.num_gpus, self.cluster.gpus_per_node
        allowed = self.rules.num_gpus
        if allowed is None:
            powers = itertools.takewhile(lambda count: count <= total, (2**power for power in range(64)))
            whole_nodes = range(node, total + 1, node)
            widest = max((count for count in whole_nodes if self.global_batch % count == 0), default=node)
            allowed = sorted({*powers, node, widest, total})
        return [count for count in allowed if count <= total and self._even(count, node)]

    def _even(self, count: int, per_node: int) -> bool:
        """Beyond one node only whole nodes; and every GPU the same number of sequences."""
        return self.global_batch % count == 0 and (count <= per_node or count % per_node == 0)

    def wider_batch(self, used: int) -> int | None:
        """The nearest global batch that divides over many more GPUs than this one does.

        Args:
            used: GPUs that this one divides over.

        Returns:
            None where none within a quarter of this one divides over twice as many, or the rules name numbers of GPUs.
        """
        total = self.cluster.num_gpus
        count = 1 << (total.bit_length() - 1)
        while count >= 2 * used and self.rules.num_gpus is None:
            nearest = max(1, round(self.global_batch / count)) * count
            if abs(nearest / self.global_batch - 1) <= _NEAR_BATCH:
                return nearest
            count //= 2
        return None

    def stages(self) -> Iterator[tuple[int, Offload]]:
        """Stages that the rules allow, without and with offload."""
        for stage in sorted(set(self.rules.zero_stages)):
            if self.rules.offload != "always":
                yield stage, "none"
            if stage == 3 and self.rules.offload != "never":
                yield stage, "optimizer"

    def checkpointing(self) -> tuple[bool, ...]:
        """Whether activations may or must be recomputed; without first."""
        return {"never": (False,), "allowed": (False, True), "always": (True,)}[self.rules.activation_checkpointing]

    def _micro_batches(self, num_gpus: int) -> tuple[int, ...]:
        """Sizes that divide a GPU's share of the global batch, largest first; without activations known, only 1."""
        share = self.global_batch // num_gpus
        if self.micro_batch_size_per_gpu is not None:
            return (self.micro_batch_size_per_gpu,)
        if not self.profile.knows_activations:
            return (1,)
        return divisors(share, min(share, self.rules.max_micro_batch_size_per_gpu))

    def _largest_micro_batch(
        self, zero_stage: int, offload: Offload, num_gpus: int, checkpointing: bool, share: float = 1.0
    ) -> Layout | None:
        sizes = self._micro_batches(num_gpus)
        largest = self._layout(zero_stage, offload, num_gpus, checkpointing, sizes[0])
        if self.fits(largest, share):
            return largest
        low, high, best = 1, len(sizes), None
        while low < high:
            middle = (low + high) // 2
            layout = self._layout(zero_stage, offload, num_gpus, checkpointing, sizes[middle])
            if self.fits(layout, share):
                best, high = layout, middle
            else:
                low = middle + 1
        return best

    def _layout(
        self, zero_stage: int, offload: Offload, num_gpus: int, checkpointing: bool, micro_batch: int
    ) -> Layout:
        asked = zero_stage, offload, num_gpus, checkpointing, micro_batch
        known = self._known.get(asked)
        if known is None:
            strategy = Strategy(
                zero_stage,  # pyright: ignore[reportArgumentType]
                num_gpus,
                micro_batch,
                checkpointing,
                offload,
                self.precision,
                self.rules.communication,
                self.rules.deepspeed,
            )
            known = self._known[asked] = self._work_out(strategy)
        return known

    def _work_out(self, strategy: Strategy) -> Layout:
        accumulation = self.global_batch // (strategy.num_gpus * strategy.micro_batch_size_per_gpu)
        components, _ = peak_components(self.profile, strategy, workspace_bytes(self.cluster), accumulation)
        peak = components.total
        margin = profile_margin(self.profile, strategy, self.cluster, self.rules.memory_margin)
        return Layout(
            strategy=strategy,
            gradient_accumulation_steps=accumulation,
            peak_allocated_bytes=peak,
            device_total_bytes=peak + sum(line.num_bytes for line in margin),
            host_bytes=host_bytes(self.profile, strategy),
            predicted_step_seconds=step_seconds(
                self.profile, strategy, accumulation, self.flops_per_sequence, self.cluster
            ),
        )

    def survey(self) -> list[Layout]:
        """For every stage, offload and number of GPUs the best layout, or the one that needs least where none fits."""
        found = []
        for num_gpus in self.gpu_counts():
            for stage, offload in self.stages():
                options = [
                    self._largest_micro_batch(stage, offload, num_gpus, recompute) for recompute in self.checkpointing()
                ]
                fitting = [option for option in options if option is not None]
                if fitting:
                    found.append(min(fitting, key=lambda option: option.gpu_seconds))
                else:
                    found.append(self.layout(stage, offload, num_gpus, self.checkpointing()[-1]))
        return found


def _host_need(layout: Layout) -> int:
    """Host memory of one rank with offload: its states, rounded up, and the process itself.

    PyTorch rounds a pinned buffer up to a power of two (CachingHostAllocator.h); of a rank's 20 bytes a parameter the
    4 of DeepSpeed's flat buffer of gradients are one pinned block (stage3.py), which may so become 8.
    """
    if not layout.host_bytes:
        return 0
    return layout.host_bytes * 6 // 5 + _PROCESS_BYTES


@functools.lru_cache(maxsize=256)
def divisors(number: int, largest: int) -> tuple[int, ...]:
    """Those that are not larger than `largest`, the largest first."""
    return tuple(size for size in range(largest, 0, -1) if number % size == 0)

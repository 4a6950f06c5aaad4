"""Simulated estimates in the form of the closed ones: strategy in, `MemoryEstimate` of the worst rank out."""

from __future__ import annotations

import threading
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flopsfit_ds.base.hardware import Cluster
from flopsfit_ds.base.storage import json_converter
from flopsfit_ds.memory import MemoryComponents, MemoryEstimate, Strategy, allocator_margin, delayed_free_bytes
from flopsfit_ds.memory.margin import workspace_bytes
from flopsfit_ds.memory.types import COMPONENT_NAMES, assemble_estimate
from flopsfit_ds.plan.ds_config import training_config
from flopsfit_ds.simulate.cache import content_key, load_result, store_result
from flopsfit_ds.simulate.results import RankMemory
from flopsfit_ds.simulate.self_test import check_installed
from flopsfit_ds.simulate.server import SimulationError, SimulationServer

if TYPE_CHECKING:
    from flopsfit_ds.simulate.case import Case

_MAX_ACCUMULATION = 2  # the second micro-batch of a window is like all later ones


class Simulator:
    """Simulates strategies, with a cache on disk; a context manager, whose process starts with the first miss.

    Threads may share one: what they ask runs side by side, on as many cores as there are.
    """

    def __init__(self, use_cache: bool = True) -> None:
        self._server: SimulationServer | None = None
        self._refusal: SimulationError | None = None
        self._use_cache = use_cache
        self._lock = threading.Lock()

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the simulation's process."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def estimate(
        self,
        case: Case,
        num_params: int,
        num_params_trainable: int,
        strategy: Strategy,
        accumulation: int,
        cluster: Cluster,
        memory_margin: float = 0.05,
        ranks: tuple[int, ...] | None = None,
        leaf_modules: tuple[str, ...] = (),
    ) -> tuple[MemoryEstimate, RankMemory]:
        """Memory of the worst rank, and what else was seen of that rank.

        Args:
            case: What is trained.
            num_params: Of the model; decides bucket sizes, as in training.
            num_params_trainable: Of these, with a gradient.
            strategy: How it is laid out.
            accumulation: Micro-batches of a step.
            cluster: The hardware; decides kernels and margin.
            memory_margin: Share of the device kept for fragmentation.
            ranks: To look at; without it, those of `ranks_to_look_at`.
            leaf_modules: Names of the modules that ZeRO-3 gathers whole.

        Raises:
            SimulationError: The model does not run on fake tensors, or the installed versions fail the self-test.
        """
        accumulation = min(accumulation, _MAX_ACCUMULATION)
        micro_batch = strategy.micro_batch_size_per_gpu
        config = training_config(
            zero_stage=strategy.zero_stage,
            offload=strategy.offload,
            num_params=num_params,
            num_params_trainable=num_params_trainable,
            world_size=strategy.num_gpus,
            micro_batch_size_per_gpu=micro_batch,
            gradient_accumulation_steps=accumulation,
            gradient_clipping=1.0,
            precision=strategy.precision,
            leaf_modules=leaf_modules,
            optimizer=case.optimizer,
            communication=strategy.communication,
            deepspeed=strategy.deepspeed,
        )
        looked_at = self._ranks(
            case,
            config,
            ranks or ranks_to_look_at(strategy.num_gpus, strategy.zero_stage),
            strategy.num_gpus,
            strategy.activation_checkpointing,
            cluster,
        )
        worst = max(looked_at, key=lambda rank: rank.peak_bytes)
        components = MemoryComponents(
            **{name: worst.components.get(name, 0) for name in COMPONENT_NAMES if name != "library_workspaces"},
            library_workspaces=workspace_bytes(cluster),
        )
        assert components.total == worst.peak_bytes + workspace_bytes(cluster)
        delayed = delayed_free_bytes(
            strategy, num_params, num_params_trainable, worst.sizes.largest_tensor, worst.sizes.block_largest_tensor
        )
        margin = allocator_margin(cluster, strategy.num_gpus, memory_margin, delayed)
        host = worst.host_peak_bytes if strategy.offload != "none" else 0
        return assemble_estimate(components, worst.peak_phase, margin, host, "simulation"), worst  # pyright: ignore[reportArgumentType]

    def rank(
        self,
        case: Case,
        config: dict[str, Any],
        rank: int,
        world_size: int,
        activation_checkpointing: bool,
        cluster: Cluster,
        num_steps: int = 2,
    ) -> RankMemory:
        """One rank of a world under any DeepSpeed configuration.

        Raises:
            SimulationError: The model does not run on fake tensors, or the installed versions fail the self-test.
        """
        return self._ranks(case, config, (rank,), world_size, activation_checkpointing, cluster, num_steps)[0]

    def _ranks(
        self,
        case: Case,
        config: dict[str, Any],
        ranks: tuple[int, ...],
        world_size: int,
        activation_checkpointing: bool,
        cluster: Cluster,
        num_steps: int = 2,
    ) -> list[RankMemory]:
        """Some ranks of a world, side by side where there are cores."""
        device = (cluster.kind, cluster.device_memory_bytes)
        questions = [(case, config, rank, world_size, activation_checkpointing, *device, num_steps) for rank in ranks]
        keys = [content_key(*question) for question in questions]
        stored = [load_result(key) if self._use_cache else None for key in keys]
        running = [
            self._start().submit("flopsfit_ds.simulate.rank:simulate_question", question) if found is None else None
            for question, found in zip(questions, stored, strict=True)
        ]
        results: list[RankMemory] = []
        for key, found, future in zip(keys, stored, running, strict=True):
            result = json_converter(RankMemory).validate_python(found) if future is None else future.result()
            if future is not None and self._use_cache:
                store_result(key, asdict(result))
            results.append(result)
        return results

    def check(self) -> None:
        """See at once that the installed versions pass the self-test.

        Raises:
            SimulationError: They do not.
        """
        self._start()

    def _start(self) -> SimulationServer:
        """The server, once its self-test has passed; who comes in the meantime waits.

        Raises:
            SimulationError: It has not.
        """
        with self._lock:
            if self._refusal is not None:
                raise SimulationError(str(self._refusal))
            if self._server is None:
                self._server = SimulationServer()
                try:
                    check_installed(self._server, self._use_cache)
                except SimulationError as error:
                    self._refusal = error
                    raise
            return self._server


def ranks_to_look_at(world_size: int, zero_stage: int) -> tuple[int, ...]:
    """The first, a middle and the last rank; at ZeRO-0 all hold the same."""
    if zero_stage == 0:
        return (0,)
    return tuple(dict.fromkeys((0, world_size // 2, world_size - 1)))

"""Whether the simulation knows the installed PyTorch and DeepSpeed: small worlds whose bytes real engines have shown.

No list of versions says which ones the patches and the counting hold for. Instead, some small worlds are simulated with
whatever is installed, and their peaks must be those of real engines, to two
blocks of the allocator.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

from flopsfit_ds.base.presets import Offload, wants_stock_zero3
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.plan.ds_config import training_config
from flopsfit_ds.simulate.cache import content_key, load_result, store_result
from flopsfit_ds.simulate.case import LanguageModelCase, SimulationJob
from flopsfit_ds.simulate.results import RankMemory
from flopsfit_ds.simulate.server import SimulationError, SimulationServer

_SHAPE = ModelShape(2, 64, 4, 4, intermediate_size=168, vocab_size=256, context_length=64)
"""More than one block and head, of sizes that few tensors share; small, so that all worlds take seconds."""
_PASSED = {"passed": True}
_NUM_RANKS = 2  # the least that shards
_TOLERANCE_BYTES = 1024
"""Two blocks of the allocator: at ZeRO-3 real engines under builds of PyTorch differ by one small tensor."""


@dataclass(frozen=True)
class World:
    """The last of two ranks of a small world, and what is known of it.

    Attributes:
        zero_stage: ZeRO stage.
        precision: As of a sweep.
        accumulation: Micro-batches of a step.
        offload: What lives in host memory.
        device: `cpu`: of ranks on a CPU, whose bytes a real run can show; `cuda`: of the simulated GPU.
        peaks: Bytes at the peak of the forward pass, the backward pass and the step.
    """

    zero_stage: int
    precision: Literal["fp32", "bf16"]
    accumulation: int
    offload: Offload
    device: Literal["cpu", "cuda"]
    peaks: tuple[int, int, int]

    def __str__(self) -> str:
        offload = " with optimizer offload" if self.offload != "none" else ""
        return f"ZeRO-{self.zero_stage}{offload} on {_NUM_RANKS} ranks of a {self.device} in {self.precision}"

    def job(self, rank: int = _NUM_RANKS - 1) -> SimulationJob:
        """What is simulated of it."""
        total = _SHAPE.parameters.total
        config = training_config(
            zero_stage=self.zero_stage,
            offload=self.offload,
            num_params=total,
            num_params_trainable=total,
            world_size=_NUM_RANKS,
            micro_batch_size_per_gpu=2,
            gradient_accumulation_steps=self.accumulation,
            gradient_clipping=1.0,
            precision=self.precision,
        )
        recompute = self.device == "cuda"
        return SimulationJob(LanguageModelCase(_SHAPE), config, rank, _NUM_RANKS, recompute, self.device, 2**40)

    def has(self, seen: tuple[int, ...]) -> bool:
        """Whether peaks are those of this world."""
        copy = 0
        if self.zero_stage == 3 and self.offload == "none" and wants_stock_zero3():
            copy = 4 * -(-_SHAPE.parameters.total // _NUM_RANKS)
        return all(abs(here - known - copy) <= _TOLERANCE_BYTES for here, known in zip(seen, self.peaks, strict=True))

    def seen(self, memory: RankMemory) -> tuple[int, ...]:
        """The peaks of a rank, in the order of `peaks`."""
        by_phase = {phase.phase: phase.peak_bytes for phase in memory.phases}
        return tuple(by_phase[name] for name in ("forward", "backward", "step"))


# Those on a CPU are held to real gloo worlds of two processes by tests/simulate/test_against_real_cpu.py. No CPU can
# show those of a GPU; they are what the code gave that met the published peaks of four H100 (scripts/bench_memory.py).
WORLDS: tuple[World, ...] = (
    World(0, "fp32", 1, "none", "cpu", (3300864, 3432448, 2125824)),
    World(1, "bf16", 1, "none", "cpu", (2862592, 2929152, 1841664)),
    World(2, "bf16", 2, "none", "cpu", (3124224, 3205120, 1841664)),
    World(3, "bf16", 2, "none", "cpu", (2394624, 2460672, 1354240)),
    World(2, "bf16", 2, "none", "cuda", (2055168, 2565632, 1841664)),
    World(3, "bf16", 2, "optimizer", "cuda", (767488, 1043968, 318464)),
)


def check_installed(server: SimulationServer, use_cache: bool) -> None:
    """See that the installed versions give the known bytes; a pass is remembered by versions and code.

    Raises:
        SimulationError: They do not, or an engine does not run; the message says what then happens.
    """
    key = content_key("self-test", [str(world) for world in WORLDS])
    if use_cache and load_result(key) == _PASSED:
        return
    running = [server.submit("flopsfit_ds.simulate.rank:simulate_rank", world.job()) for world in WORLDS]
    for world, future in zip(WORLDS, running, strict=True):
        try:
            found = world.seen(future.result())
        except SimulationError as error:
            raise _refusal(f"{world} stopped at {error}") from None
        if not world.has(found):
            raise _refusal(f"{world} peaks at {list(found)} bytes where a real engine has {list(world.peaks)}")
    if use_cache:
        store_result(key, _PASSED)


def _refusal(what: str) -> SimulationError:
    versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))
    return SimulationError(
        f"its self-test, for it does not know {versions}: {what}; memory is estimated by closed forms alone, and what "
        "these do not know is planned at the smallest micro-batch"
    )

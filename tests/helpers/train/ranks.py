"""Train a planned run in real rank processes over gloo, as the engine would, one attempt at a time."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from flopsfit_ds.base.storage import read_json
from flopsfit_ds.data.manifest import WatchedFile
from flopsfit_ds.engine.fork.server import TRAINING_MODULES
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import RunFolder
from flopsfit_ds.train.data.token_file import prepare_tokens
from flopsfit_ds.train.data.tokens import TokenWorkload
from flopsfit_ds.train.order import EXIT_OUTCOME_WRITTEN, WorkerOrder, WorkerTask
from helpers.forking import ForkingServer
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus

WORKER = "flopsfit_ds.train.worker:run_worker"
WORKER_THAT_WAITS = "helpers.train.kill_targets:run_worker_that_waits"
STEPS = 30
CHANGES: dict[str, Any] = {"design__points": [{"num_params": 6e3, "num_tokens": 128 * STEPS}]}
SHORT = with_values(MICRO, **CHANGES)
CURVE = with_values(MICRO, design__points=[{"num_params": 6e3, "num_tokens": 128 * 50}])
"""Of which most tests of stages see the same few curves."""


class RankServer(ForkingServer):
    """Has DeepSpeed and the project's training imported, and forks ranks."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(
            [*TRAINING_MODULES, "helpers.train.rank_process"], {"OMP_NUM_THREADS": "1", **(environment or {})}
        )


@dataclass
class Attempt:
    """Ranks under way.

    Attributes:
        server: Who started them.
        pids: One a rank.
        store: Their rendezvous, hosted by the test.
        folder: Of the run.
        number: Of the attempt.
    """

    server: RankServer
    pids: list[int]
    store: dist.TCPStore
    folder: RunFolder
    number: int

    def wait(self, timeout_seconds: float = 240.0) -> list[int | None]:
        """Exit codes of all ranks."""
        return self.server.wait(self.pids, timeout_seconds)

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all."""
        for pid in self.pids if rank is None else [self.pids[rank]]:
            os.kill(pid, number)

    def steps_done(self) -> int:
        """As its metrics say, which are written before every checkpoint; 0 before the first."""
        last = self.folder.metrics.last()
        return 0 if last is None else last["step"]

    def phase(self) -> str:
        """What the heartbeat of rank 0 says; empty before it says anything."""
        key = "heartbeat/0"
        return self.store.get(key).decode() if self.store.check([key]) else ""

    @property
    def outcome(self) -> dict[str, Any]:
        """What rank 0 wrote; with the ranks' logs in the error where it wrote nothing."""
        try:
            return read_json(self.folder.attempt(self.number) / "outcome.json")
        except FileNotFoundError:
            raise AssertionError("no outcome was written:\n" + self.logs()) from None

    @property
    def losses(self) -> list[float]:
        """Training loss of each step."""
        lines = self.folder.metrics.read()
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        return [line["loss"] for line in lines]

    def logs(self) -> str:
        """What all ranks printed."""
        paths = sorted(self.folder.attempt(self.number).glob("log.*.txt"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in paths)


@dataclass(frozen=True)
class Layout:
    """How an attempt splits the global batch."""

    zero_stage: int = 0
    world_size: int = 1
    accumulation: int = 1
    offload: str = "none"
    activation_checkpointing: bool = False
    compiled: bool = False
    data_workers: int = 0


def start(
    server: RankServer,
    run: RunPlan,
    workload: Any,
    folder: Path,
    layout: Layout,
    *,
    number: int = 1,
    checkpoint_every_seconds: float = 1e9,
    target: str = WORKER,
    watched: tuple[WatchedFile, ...] = (),
) -> Attempt:
    """Start all ranks of an attempt."""
    run_folder = RunFolder(folder)
    run_folder.attempt(number).mkdir(parents=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    micro_batch, rest = divmod(run.global_batch_sequences, layout.world_size * layout.accumulation)
    assert rest == 0
    orders = [
        WorkerOrder(
            run_folder=str(folder),
            attempt=number,
            rank=rank,
            world_size=layout.world_size,
            local_rank=rank,
            local_world_size=layout.world_size,
            device_index=None,
            store_host="127.0.0.1",
            store_port=store.port,
            num_threads=1,
            zero_stage=layout.zero_stage,
            offload=layout.offload,  # pyright: ignore[reportArgumentType]
            micro_batch_size_per_gpu=micro_batch,
            gradient_accumulation_steps=layout.accumulation,
            activation_checkpointing=layout.activation_checkpointing,
        )
        for rank in range(layout.world_size)
    ]
    task = WorkerTask(
        run,
        workload,
        checkpoint_every_seconds,
        peak_flops=None,
        compiled=layout.compiled,
        data_workers=layout.data_workers,
        watched=watched,
    )
    sent = pickle.dumps(task)
    pids = [server.start("helpers.train.rank_process:run_rank", target, order, sent) for order in orders]
    return Attempt(server, pids, store, run_folder, number)


def workload_of(plan: SweepPlan, run: RunPlan, folder: Path) -> TokenWorkload:
    """The language model on the plan's corpus, tokenised into `folder`."""
    assert run.model.vocab_size is not None
    return TokenWorkload(run.model, prepare_tokens(plan.corpus, folder, run.model.vocab_size))


class Bench:
    """Attempts at one small run, in one folder."""

    def __init__(self, server: RankServer, base: Path, layout: Layout, values: dict = SHORT) -> None:
        write_bytes_corpus(base / "corpus.txt")
        plan = plan_of(values, base)
        self.run, self.folder, self.server, self.layout = plan.runs[0], base / "run", server, layout
        self.workload = workload_of(plan, self.run, base)
        self.number = 0

    def start(self, checkpoint_every_seconds: float, target: str = WORKER) -> Attempt:
        self.number += 1
        return start(
            self.server, self.run, self.workload, self.folder, self.layout,
            number=self.number, checkpoint_every_seconds=checkpoint_every_seconds, target=target,
        )  # fmt: skip

    def finish(self) -> Attempt:
        attempt = self.start(checkpoint_every_seconds=1e9)
        assert attempt.wait() == [EXIT_OUTCOME_WRITTEN] * self.layout.world_size, attempt.logs()
        return attempt

    def stop_at(self, step: int, number: int, rank: int | None = None) -> Attempt:
        """Start with a checkpoint at every step, send a signal in the step after so many, and wait."""
        self.folder.mkdir(exist_ok=True)
        wait_after = self.folder / "wait_after"
        wait_after.write_text(str(step))
        attempt = self.start(0.0, WORKER_THAT_WAITS)
        deadline = time.monotonic() + 240
        while attempt.steps_done() < step:
            assert time.monotonic() < deadline, attempt.logs()
            time.sleep(0.01)
        attempt.signal(number, rank)
        wait_after.unlink()
        attempt.codes = attempt.wait()
        return attempt


def bench_of(server: RankServer, folder: Path, layout: Layout, workload: type | None = None, **changes: Any) -> Bench:
    """A bench for the short run with changes to its spec, or with another workload on the same tokens."""
    bench = Bench(server, folder, layout, with_values(SHORT, **changes))
    if workload is not None:
        bench.workload = workload(bench.workload.shape, bench.workload.tokens)
    return bench


def assert_same(resumed: Attempt, undisturbed: Attempt) -> None:
    """Bit by bit."""
    assert resumed.losses == undisturbed.losses
    for key in ("status", "loss", "loss_standard_error", "loss_tokens"):
        assert resumed.outcome[key] == undisturbed.outcome[key]

"""Predicted against measured memory on one device, one fresh process for each configuration, written as JSON.

    python scripts/validate_gpu.py --output tests/gpu_measurements/<machine>.json      # on a machine with a CUDA GPU
    python scripts/validate_gpu.py --device cpu --limit 2                              # a dry run of the script itself
    PYTHONPATH=. timeout 590 python scripts/validate_gpu.py --output F                 # in slices, from a plain copy

Worlds larger than one are played by PyTorch's fake process group: collectives do nothing, allocations are those of a
real rank. On a CPU nothing of CUDA is measured: the script then counts live CPU tensors, and says so in its output.

Configurations come in a mixed order, so that the first dozen are a sample of all, and the file is written after each:
a script that was ended goes on where it stopped when it is called with the same file. A row that is in the file is not
measured again; delete it to have that done. What is predicted not to fit is not tried; its row holds the prediction.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import FlopsfitError, LaunchError
from flopsfit_ds.base.hardware import Cluster, read_machine, resolve_cluster
from flopsfit_ds.base.storage import atomic_write
from flopsfit_ds.memory import Strategy
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.simulate import SimulationError, Simulator

SHAPES = {
    "100M": ModelShape(12, 768, 12, 12, 2048, 32000, 1024),
    "400M": ModelShape(24, 1024, 16, 16, 2816, 32000, 1024),
    "1B": ModelShape(16, 2048, 32, 8, 8192, 32000, 2048),
    "8B": ModelShape(32, 4096, 32, 8, 14336, 128256, 2048),
}
TINY = ModelShape(2, 128, 4, 4, 344, 512, 64)
WARM_STEPS = 2
TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True)
class Configuration:
    """What is predicted and measured once.

    Attributes:
        shape: Name of a shape.
        strategy: How it is laid out.
        accumulation: Micro-batches of a step; with two, gradients of the first live through the second forward pass.
    """

    shape: str
    strategy: Strategy
    accumulation: int

    @property
    def model_shape(self) -> ModelShape:
        """The shape of that name."""
        return SHAPES.get(self.shape, TINY)

    @property
    def label(self) -> str:
        """For people, in one line."""
        batches = f"mb{self.strategy.micro_batch_size_per_gpu}x{self.accumulation}"
        return f"{self.shape:5} {self.strategy.label:40} {self.strategy.precision} {batches}"


def configurations(device: str) -> list[Configuration]:
    """Shapes x stages x worlds x (micro-batch, accumulation, checkpointing, precision), mixed; tiny ones for a CPU."""
    rows: list[Configuration] = []
    if device == "cpu":
        layouts = [(stage, world) for stage in (0, 2, 3) for world in (1, 8)]
        shapes, variants = ["tiny"], [(2, 1, False, "bf16"), (2, 2, False, "bf16")]
    else:
        layouts = [(0, 1)] + [(stage, world) for stage in (1, 2, 3) for world in (1, 8, 64)]
        shapes = list(SHAPES)
        variants = [
            (1, 1, False, "bf16"),
            (4, 1, False, "bf16"),
            (4, 1, True, "bf16"),
            (1, 1, False, "fp32"),
            (2, 2, False, "bf16"),
        ]
    for name in shapes:
        for stage, world in layouts:
            for micro_batch, accumulation, checkpointing, precision in variants:
                strategy = Strategy(stage, world, micro_batch, checkpointing, "none", precision)  # pyright: ignore[reportArgumentType]
                rows.append(Configuration(name, strategy, accumulation))
    # steps of the golden ratio come near to every value of every axis early
    stride = next(step for step in range(round(0.382 * len(rows)), len(rows)) if math.gcd(step, len(rows)) == 1)
    return [rows[number * stride % len(rows)] for number in range(len(rows))]


def job_of(configuration: Configuration, device: str, device_memory_bytes: int) -> Any:
    """The job of one configuration, as the simulation and the measurement both run it."""
    from flopsfit_ds.plan.ds_config import training_config
    from flopsfit_ds.simulate.case import LanguageModelCase, SimulationJob

    strategy, shape = configuration.strategy, configuration.model_shape
    total = shape.parameters.total
    config = training_config(
        zero_stage=strategy.zero_stage,
        offload=strategy.offload,
        num_params=total,
        num_params_trainable=total,
        world_size=strategy.num_gpus,
        micro_batch_size_per_gpu=strategy.micro_batch_size_per_gpu,
        gradient_accumulation_steps=configuration.accumulation,
        gradient_clipping=1.0,
        precision=strategy.precision,
    )
    case = LanguageModelCase(shape)
    recompute = strategy.activation_checkpointing
    return SimulationJob(case, config, 0, strategy.num_gpus, recompute, device, device_memory_bytes)  # pyright: ignore[reportArgumentType]


class _Watched:
    """A case that remembers the engine which it was trained with."""

    engine: Any = None

    def __init__(self, case: Any) -> None:
        self._case = case

    def __getattr__(self, name: str) -> Any:
        return getattr(self._case, name)

    def loss(self, model: Any, batch: Any) -> Any:
        self.engine = model
        return self._case.loss(model, batch)


def measure(configuration: Configuration, device: str, device_memory_bytes: int) -> dict[str, Any]:
    """Take steps on real memory in this process: `status`, and what was measured or the `reason` why not."""
    import torch

    from flopsfit_ds.simulate.rank import join_fake_world, observe
    from flopsfit_ds.simulate.tensors.tracker import LiveMemory

    job = job_of(configuration, device, device_memory_bytes)
    watched = _Watched(job.case)
    job = replace(job, case=watched)
    join_fake_world(job)
    if device == "cpu":
        counted = observe(job, torch.device("cpu"), LiveMemory("cpu"), time.monotonic())
        measured: dict[str, Any] = {"peak_allocated_bytes": counted.peak_bytes}
    else:
        try:
            measured = _measure_on_gpu(job, torch.device("cuda", 0))
        except torch.cuda.OutOfMemoryError as error:
            return {"status": "out of memory", "reason": str(error).splitlines()[0]}
    measured["skipped_steps"] = watched.engine.skipped_steps
    answer = {"status": "measured", "reason": None, "measured": measured}
    if measured["skipped_steps"]:
        answer |= {"status": "steps skipped", "reason": "what an optimiser step needs was not measured: it was skipped"}
    return answer


def _measure_on_gpu(job: Any, device: Any) -> dict[str, Any]:
    import torch

    from flopsfit_ds.simulate.rank import build_engine, casts_of
    from flopsfit_ds.train.data.outputs import to_device

    torch.cuda.set_device(device)
    engine, _ = build_engine(job, device)
    casts = casts_of(job, engine.module)
    seconds = []
    micro_batches = job.config["gradient_accumulation_steps"]
    for _ in range(WARM_STEPS + 2):
        torch.cuda.synchronize()
        began = time.monotonic()
        if casts is not None:
            casts.make()
        for number in range(micro_batches):
            last = number == micro_batches - 1
            engine.set_gradient_accumulation_boundary(last)
            batch = to_device(job.case.batch(job.config["train_micro_batch_size_per_gpu"]), device)
            loss = job.case.loss(engine, batch)
            if casts is not None and last:
                casts.drop()
            engine.backward(loss)
            if last:
                engine.step()
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "device_total_bytes": torch.cuda.get_device_properties(device).total_memory,
        "step_seconds": min(seconds[WARM_STEPS:]),
    }


def measure_in_fresh_process(
    configuration: Configuration, device: str, device_memory_bytes: int, timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[str, Any]:
    """`measure` in a process of its own; its last line of output is the answer."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
    request = {**asdict(configuration), "device": device, "device_memory_bytes": device_memory_bytes}
    command = [sys.executable, __file__, "--measure", json.dumps(request)]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": "timed out", "reason": f"no answer in {timeout_seconds:g} s"}
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        return {"status": "failed", "reason": f"exit status {answer.returncode}: {last}"}
    return json.loads(answer.stdout.strip().splitlines()[-1])


def compare(
    simulator: Simulator, configuration: Configuration, cluster: Cluster, timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[str, Any]:
    """One row: the configuration, the prediction, a status with its reason, and the measurement where there is one."""
    row: dict[str, Any] = {**asdict(configuration), "measured": None, "relative_error": None}
    total = configuration.model_shape.parameters.total
    device, memory = cluster.kind, cluster.device_memory_bytes
    case = job_of(configuration, device, memory).case
    try:
        predicted, _ = simulator.estimate(
            case, total, total, configuration.strategy, configuration.accumulation, cluster, 0.0, ranks=(0,)
        )
    except SimulationError as error:
        return row | {"status": "failed", "reason": f"simulation: {error}"}
    row["predicted_peak_allocated_bytes"] = predicted.peak_allocated_bytes
    row["predicted_device_total_bytes"] = predicted.device_total_bytes
    row["predicted_fits"] = predicted.device_total_bytes <= memory
    if not row["predicted_fits"]:
        need = f"{predicted.device_total_bytes / 2**30:.1f} GiB of {memory / 2**30:.1f}"
        return row | {"status": "not tried", "reason": f"predicted not to fit: {need}"}
    row |= measure_in_fresh_process(configuration, device, memory, timeout_seconds)
    if row["status"] == "measured":
        row["relative_error"] = predicted.peak_allocated_bytes / row["measured"]["peak_allocated_bytes"] - 1
    return row


def describe_machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    machine = read_machine()
    measured = "torch.cuda.max_memory_allocated" if device == "cuda" else "live CPU tensors: a dry run, no GPU was used"
    versions = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed", "accelerate")}
    return asdict(machine) | {"python": platform.python_version(), "versions": versions, "measured": measured}


def rows_of(path: Path | None, machine: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that a file holds already, by the identity of their configurations.

    Raises:
        ValueError: They were measured on another kind of device or with other versions, or it is no such file.
    """
    if path is None or not path.exists():
        return {}
    try:
        earlier = json.loads(path.read_text())
        differs = [key for key in ("device_name", "versions", "measured") if earlier["machine"][key] != machine[key]]
        rows = {_identity(row): row for row in earlier["rows"]}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no file of this script as it is now ({error!r}); name another --output") from None
    if differs:
        compared = "; ".join(f"{key} {earlier['machine'][key]}, here {machine[key]}" for key in differs)
        raise ValueError(f"{path} was measured with {compared}; name another --output")
    return rows


def _identity(row: dict[str, Any]) -> str:
    return json.dumps([row["shape"], row["strategy"], row["accumulation"]], sort_keys=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Predict and measure every configuration that could fit; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="Written after each configuration; rows in it are kept.")
    parser.add_argument("--limit", type=int, help="Only the first so many configurations.")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, help="Seconds that one measurement may take.")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        request = json.loads(arguments.measure)
        asked = Configuration(request["shape"], Strategy(**request["strategy"]), request["accumulation"])
        print(json.dumps(measure(asked, request["device"], request["device_memory_bytes"])))
        return
    with Simulator() as simulator:
        try:
            cluster = _cluster(arguments.device)
            machine = describe_machine(arguments.device)
            rows = rows_of(arguments.output, machine)
            simulator.check()
        except SimulationError as error:
            parser.error(f"the simulation stopped at {error}")
        except (FlopsfitError, ValueError) as error:
            parser.error(str(error))
        for configuration in configurations(arguments.device)[: arguments.limit]:
            identity = _identity(asdict(configuration))
            if identity in rows:
                continue
            row = compare(simulator, configuration, cluster, arguments.timeout)
            error = row["relative_error"]
            shown = f"{error:+.2%}" if error is not None else f"{row['status']}: {row['reason']}"
            print(f"{configuration.label} {shown}", flush=True)
            rows[identity] = row
            if arguments.output:
                result = {"machine": machine, "device": arguments.device, "rows": list(rows.values())}
                atomic_write(arguments.output, json.dumps(result, indent=1) + "\n")


def _cluster(device: str) -> Cluster:
    """The device as both sides see it.

    Raises:
        LaunchError: There is no CUDA GPU whose memory is known.
        SpecError: The table does not have the GPU.
    """
    machine = read_machine()
    if device == "cuda" and machine.device_memory_bytes is None:
        raise LaunchError(
            f"this machine has no CUDA GPU whose memory is known ({machine.unknown_gpus or machine.device_name}); "
            "--device cpu makes a dry run of the script, which measures no GPU"
        )
    name = "cpu" if device == "cpu" else machine.device_name
    return resolve_cluster("bf16", device=name, gpus_per_node=1, host_memory=machine.host_memory_bytes)


if __name__ == "__main__":
    main()

"""What the engine costs and how full it keeps the slots: start-up, packing, a real sweep. Prints tables.

python scripts/bench_engine.py startup      a point that does nothing, against fresh processes and `deepspeed`
python scripts/bench_engine.py resume       the driver is killed and started again: when does training go on?
python scripts/bench_engine.py planning     a plan and a first schedule of 1,000 points
python scripts/bench_engine.py packing      8 and 64 simulated GPUs, up to 1,000 points
python scripts/bench_engine.py sweep        24 real points on 2 CPU slots, against one after another
python scripts/bench_engine.py ray          12 points that sleep: on slots, on Ray, and by Ray Tune alone (ray[tune])
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from flopsfit_ds.base.storage import write_json
from flopsfit_ds.engine.fork.server import TRAINING_MODULES, Program
from flopsfit_ds.engine.schedule.scheduler import Scheduler, Waiting
from flopsfit_ds.engine.slots import Slot
from flopsfit_ds.engine.sweep import run_sweep
from flopsfit_ds.engine.ways import ways_of
from flopsfit_ds.memory import Strategy
from flopsfit_ds.plan.layouts import Layout
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan, build_plan
from flopsfit_ds.records import Attempt, RunFolder, SweepFolder
from flopsfit_ds.spec import parse_spec

SPEC = """
name: bench
output_root: {root}
model: {{vocab_size: 256, context_length: 64, head_dim: 8, width_per_layer: 32}}
data: {{source: python-stdlib, heldout_tokens: 8k}}
design: {{method: points, points: [{points}]}}
training: {{global_batch_tokens: 1024, learning_rates: [6e-3], precision: fp32, checkpoint_every: {checkpoint_every}}}
hardware: {{device: cpu, gpus_per_node: 2}}
placement: {{num_gpus: {num_gpus}}}
"""
FRESH = """
import torch, torch._dynamo, deepspeed, accelerate, transformers.integrations.deepspeed
import torch.distributed as dist
dist.init_process_group("gloo"); dist.barrier()
import os; os._exit(0)
"""
NOTHING = Program("bench_engine:do_nothing", TRAINING_MODULES)


@dataclass(frozen=True)
class NothingTask:
    """A run that only meets its peers, and sleeps."""

    plan: RunPlan
    sleep_seconds: float = 0.0


def do_nothing(order: Any, task: NothingTask) -> int:
    """Meet the other ranks, and end."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    time.sleep(task.sleep_seconds)
    if order.rank == 0:
        outcome = {"status": "completed", "reason": None, "loss": 1.0, "loss_standard_error": 0.1, "loss_tokens": 1}
        path = RunFolder(Path(order.run_folder)).attempt(order.attempt) / "outcome.json"
        write_json(path, outcome | {"start_step": 0, "observed": None, "versions": {}})
    return 0


def make_plan(root: Path, tokens: list[int], num_gpus: str) -> SweepPlan:
    """A sweep of one small model trained for these numbers of tokens."""
    points = ", ".join(f"{{num_params: 25k, num_tokens: {count}}}" for count in tokens)
    return build_plan(parse_spec(SPEC.format(root=root, points=points, num_gpus=num_gpus, checkpoint_every=600)))


def startup() -> None:
    """Start-up of a point on 2 CPU ranks, from decision to exit."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder), [40_000 + 2_000 * i for i in range(12)], "[2]")
        records = run_sweep(plan, tasks=NothingTask, program=NOTHING)
        ours = [record.attempts[0].seconds for record in records]
        script = Path(folder) / "fresh.py"
        script.write_text(FRESH)
        fresh = [_fresh_processes(script) for _ in range(3)]
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", "29555"]
        bare = [_timed([*launcher, str(script)]) for _ in range(3)]
    print("start-up of a point that does nothing, 2 CPU ranks, seconds from decision to exit")
    for name, values in (("this engine", ours), ("fresh processes", fresh), ("deepspeed launcher", bare)):
        spread = f"{min(values):6.2f} to {max(values):6.2f}"
        print(f"  {name:20s} median {statistics.median(values):6.2f}   {spread}   n={len(values)}")


def _fresh_processes(script: Path) -> float:
    began = time.monotonic()
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29556", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, str(script)], env={**os.environ, **common, "RANK": str(rank)})
        for rank in range(2)
    ]
    for rank in ranks:
        if rank.wait():
            raise RuntimeError("a fresh process failed")
    return time.monotonic() - began


def _timed(command: list[str]) -> float:
    began = time.monotonic()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.monotonic() - began


def resume() -> None:
    """A point of two ranks, trained for real, whose driver is killed; from the same command to the next step."""
    found = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            spec = Path(folder) / "spec.yaml"
            points = "{num_params: 25k, num_tokens: 20M}"
            spec.write_text(SPEC.format(root=folder, points=points, num_gpus="[2]", checkpoint_every=1))
            command = [sys.executable, "-m", "flopsfit_ds.cli", "sweep", str(spec)]
            found.append(_resume_seconds(command, SweepFolder(Path(folder) / "bench")))
    print(
        "seconds from the start of the same command, after SIGKILL of the driver, to the first new step in the metrics"
    )
    print(f"  (written at most 1 s after the step)    {', '.join(f'{seconds:.2f}' for seconds in found)}")


def _resume_seconds(command: list[str], folder: SweepFolder) -> float:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def wait_for_step(minimum: int, driver: subprocess.Popen[bytes]) -> None:
        while True:
            line = next((found.metrics.last() for found in map(folder.run, _run_ids(folder))), None)
            if line is not None and line["step"] >= minimum:
                return
            if driver.poll() is not None:
                raise RuntimeError(f"the sweep exited with {driver.returncode}")
            time.sleep(0.01)

    driver = start()
    wait_for_step(200, driver)
    driver.kill()
    driver.wait()
    (run_id,) = _run_ids(folder)
    reached = folder.run(run_id).metrics.last()
    assert reached is not None
    began = time.monotonic()
    driver = start()
    wait_for_step(reached["step"] + 1, driver)
    seconds = time.monotonic() - began
    driver.kill()
    driver.wait()
    return seconds


def _run_ids(folder: SweepFolder) -> list[str]:
    return [path.name for path in folder.path.glob("runs/*")]


def planning() -> None:
    """From a spec's text to a plan of 1,000 points for 64 GPUs, and from there to its first schedule."""
    budgets = ", ".join(str(10 ** (19 + number / 50)) for number in range(50))
    design = f"design: {{method: isoflop, compute_budgets: [{budgets}], sizes_per_budget: 20}}"
    text = f"name: bench\n{design}\nhardware: {{device: H100-SXM, num_nodes: 8}}\n"
    slots = [Slot(node, i, None, f"{node}:{i}") for node in range(8) for i in range(8)]
    plans, schedules = [], []
    for _ in range(5):
        began = time.monotonic()
        plan = build_plan(parse_spec(text))
        plans.append(time.monotonic() - began)
        waiting = [Waiting(run.run_id, ways_of(run).layouts, run.num_steps) for run in plan.runs]
        began = time.monotonic()
        Scheduler(slots).forecast(waiting)
        schedules.append(time.monotonic() - began)
    print(f"planning {len(waiting)} points for 64 GPUs, seconds; layouts of a model are searched once a process")
    print(f"  plan       {plans[0]:6.2f}, again {min(plans[1:]):.2f} to {max(plans[1:]):.2f}")
    print(f"  schedule   {min(schedules):6.2f} to {max(schedules):.2f}")


def packing() -> None:
    """Simulated sweeps: the real scheduler on a clock of its own."""
    print("simulated sweeps of lognormal points (sigma 1): makespan over the lower bound from actual times")
    print("  GPUs  points  layouts    times known  times off by 20%  longest is bound  first plan  scheduler CPU")
    for num_nodes in (1, 8):
        for num_points in (60, 200, 1000):
            for kind in ("rigid", "moldable"):
                exact = _simulate(num_nodes, num_points, kind, noise=0.0)
                off = _simulate(num_nodes, num_points, kind, noise=0.2)
                print(
                    f"  {num_nodes * 8:4d}  {num_points:6d}  {kind:9s} {exact['ratio']:11.4f}  {off['ratio']:16.4f}  "
                    f"{'yes' if exact['bound_is_longest'] else 'no':>16s}  {exact['plan']:8.2f} s  {exact['cpu']:12.3%}"
                )


def _layout(num_slots: int, seconds: float) -> Layout:
    """Of a run of a single step."""
    return Layout(Strategy(0, num_slots, 1, False, "none", "bf16"), 1, 0, 0, 0, predicted_step_seconds=seconds)


def _simulate(num_nodes: int, num_points: int, kind: str, noise: float) -> dict[str, Any]:
    """One sweep on a virtual clock; a point's actual time differs from the predicted one by lognormal noise."""
    draw = random.Random(num_points)
    slots = [Slot(node, i, None, f"{node}:{i}") for node in range(num_nodes) for i in range(8)]
    waiting, actual = {}, {}
    for number in range(num_points):
        seconds, factor = 1800 * math.exp(draw.gauss(0, 1)), math.exp(draw.gauss(0, noise))
        widths = (1, 2, 4, 8) if kind == "moldable" else (draw.choice((1, 1, 1, 2, 4, 8)),)
        layouts = tuple(
            _layout(w, seconds / (w * 0.93 ** math.log2(w)) if kind == "moldable" else seconds) for w in widths
        )
        waiting[str(number)] = Waiting(str(number), layouts, num_steps=1)
        actual[str(number)] = factor
    now, cpu_began = 0.0, time.process_time()
    scheduler = Scheduler(slots, clock=lambda: now)
    began = time.monotonic()
    scheduler.forecast(list(waiting.values()))
    plan_seconds = time.monotonic() - began
    heap: list[tuple[float, str, Any]] = []
    began_at: dict[str, float] = {}
    work, longest = 0.0, 0.0
    while waiting or heap:
        for end, run_id, _ in heap:
            scheduler.note_step(run_id, (now - began_at[run_id]) / (end - began_at[run_id]))
        for assignment in scheduler.choose(list(waiting.values())):
            seconds = (assignment.layout.predicted_step_seconds + 1.0) * actual[assignment.run_id]
            work, longest = work + seconds * assignment.layout.num_slots, max(longest, seconds)
            heapq.heappush(heap, (now + seconds, assignment.run_id, assignment))
            began_at[assignment.run_id] = now
            del waiting[assignment.run_id]
        now, run_id, ended = heapq.heappop(heap)
        scheduler.note_end(
            ended, (_attempt(ended.layout, (ended.layout.predicted_step_seconds + 1.0) * actual[run_id]),)
        )
    bound = max(work / len(slots), longest)
    return {
        "ratio": now / bound,
        "bound_is_longest": bound == longest,
        "plan": plan_seconds,
        "cpu": (time.process_time() - cpu_began) / now,
    }


def _attempt(layout: Layout, seconds: float) -> Attempt:
    return Attempt(1, "completed", None, (), 0, layout.num_slots, 1, 1, 0, 0.0, seconds)


def sweep() -> None:
    """24 real points on 2 CPU slots, side by side and one after another on both."""
    from flopsfit_ds.study import steps as api

    draw = random.Random(0)
    tokens = sorted(int(150_000 * math.exp(draw.gauss(0, 0.7))) for _ in range(24))
    print("24 points of lognormal length on 2 CPU slots, real training")
    makespans = []
    for name, num_gpus in (("packed, 1 or 2 slots", "[1, 2]"), ("one after another on both slots", "[2]")):
        with tempfile.TemporaryDirectory() as folder:
            plan = make_plan(Path(folder), tokens, num_gpus)
            api.run_sweep(plan)
            events = SweepFolder(plan.folder).events.read()
        finish = next(event for event in events if event["event"] == "finish")
        planned = next(event for event in events if event["event"] == "plan")
        ratio = finish["makespan_seconds"] / finish["lower_bound_seconds"]
        makespans.append(finish["makespan_seconds"])
        print(
            f"  {name:32s} makespan {finish['makespan_seconds']:7.1f} s   "
            f"bound {finish['lower_bound_seconds']:7.1f} s   ratio {ratio:.3f}   "
            f"planned {planned['makespan_seconds']:.1f} s   "
            f"scheduler CPU {finish['driver_cpu_seconds'] / finish['makespan_seconds']:.2%}"
        )
    print(f"  packed, the sweep takes {makespans[0] / makespans[1]:.3f} of the time of one after another")


@dataclass(frozen=True)
class Naps:
    """Makes the task of a run: it sleeps for as long as its place in the plan says."""

    seconds: dict[str, float]

    def __call__(self, run: RunPlan) -> NothingTask:
        """See `Tasks`."""
        return NothingTask(run, self.seconds[run.run_id])


def nap(config: dict[str, float]) -> dict[str, float]:
    """A trial of Tune's: what a worker has imported, and the same sleep."""
    import importlib

    for name in TRAINING_MODULES:
        importlib.import_module(name)
    time.sleep(config["seconds"])
    return {"loss": 1.0}


def on_ray() -> None:
    """12 points that sleep for lognormal times, on two CPUs, with all that training imports."""
    import ray

    draw = random.Random(0)
    naps = [3 * math.exp(draw.gauss(0, 0.5)) for _ in range(12)]
    print(f"12 points that sleep, {sum(naps):.0f} s in all, two at a time; bound {_bound(naps):.1f} s")
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    ray.init(address="local", num_cpus=2, _memory=64 * 2**30, log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        for name, executor in (("this engine, slots", "local"), ("this engine, Ray", "ray")):
            plan = make_plan(Path(folder) / executor, [40_000 + 2_000 * i for i in range(len(naps))], "[1]")
            tasks = Naps({run.run_id: seconds for run, seconds in zip(plan.runs, naps, strict=True)})
            began = time.monotonic()
            run_sweep(plan, tasks=tasks, program=NOTHING, executor=executor)
            _tell(name, time.monotonic() - began, naps)
        began = time.monotonic()
        _tune(naps, folder)
        _tell("Ray Tune", time.monotonic() - began, naps)


def _tune(naps: list[float], folder: str) -> None:
    from ray import tune

    space = {"seconds": tune.grid_search(naps)}
    tuner = tune.Tuner(
        tune.with_resources(nap, {"cpu": 1}),
        param_space=space,
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    results = tuner.fit()
    if results.num_errors:
        raise RuntimeError(f"{results.num_errors} trials failed")


def _bound(naps: list[float]) -> float:
    return max(sum(naps) / 2, *naps)


def _tell(name: str, seconds: float, naps: list[float]) -> None:
    overhead = (2 * seconds - sum(naps)) / len(naps)
    print(f"  {name:20s} {seconds:7.1f} s   over the bound {seconds / _bound(naps):6.2f}   a point {overhead:6.2f} s")


def main() -> None:
    """Run the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = {"startup": startup, "resume": resume, "planning": planning, "packing": packing, "sweep": sweep}
    more = {**benchmarks, "ray": on_ray}
    parser.add_argument("parts", nargs="*", choices=[*more, []], help="all but `ray` without any")
    for part in parser.parse_args().parts or benchmarks:
        more[part]()


if __name__ == "__main__":
    main()

"""What a training step costs here, against loops that others write: same model, batches, precision and threads.

python scripts/bench_train.py                        CPU, fp32, 128 tokens a step: 83 k, 1 M, 10 M and 60 M parameters
python scripts/bench_train.py --baseline 9504527     and an earlier commit of this project, from a worktree of it
python scripts/bench_train.py --device cuda          one GPU, bf16: 125 M, 350 M and 1.3 B; tokens a second, MFU, peak

Each contender is a process of its own that trains a few steps when it is asked to; they are asked in turn, round after
round, in an order that is drawn. A figure is the median over rounds of a ratio within a round: of CPU seconds on a CPU,
which other processes disturb little, of seconds on a GPU. `bare` is a tutorial's loop: forward, backward, clipping,
fused AdamW, and the loss read at every step. A last process says where the time of ours goes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WARMUP_STEPS = 3
SPEC = """
name: bench
output_root: {folder}
model: {{vocab_size: {vocabulary}, context_length: {context}, head_dim: {head}, width_per_layer: 64}}
data: {{source: text, paths: [{folder}/corpus.txt], heldout_tokens: 64k}}
design: {{method: points, points: [{{num_params: {parameters}, num_tokens: {tokens}}}]}}
training: {{global_batch_tokens: {batch}, learning_rates: [1e-3], precision: {precision}}}
hardware: {{device: {device}, gpus_per_node: 1}}
placement: {{num_gpus: [1], zero_stages: [0]}}
"""
CPU_SIZES = {"83k": (64, 128, 16), "1M": (64, 128, 32), "10M": (64, 128, 64), "60M": (64, 128, 64)}
CUDA_SIZES = {"125M": (1024, 32768, 64), "350M": (1024, 16384, 64), "1.3B": (2048, 16384, 128)}
"""Context, tokens a step, width of a head."""


def find(name: str, *modules: str) -> Any:
    """An object by its present home or an earlier one: a baseline has other folders."""
    for module in modules:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), name)
    raise ImportError(f"{name} is in none of {', '.join(modules)}")


class Setting:
    """The run that all contenders train, as the project at hand plans it."""

    def __init__(self, options: argparse.Namespace) -> None:
        from flopsfit_ds import build_plan
        from flopsfit_ds.spec import parse_spec

        context, batch, head = (CUDA_SIZES if options.device == "cuda" else CPU_SIZES)[options.size]
        text = SPEC.format(
            folder=options.folder, vocabulary=256, context=context, head=head, parameters=options.size, batch=batch,
            tokens=batch * 20_000, precision=options.precision, device="cpu" if options.device == "cpu" else "auto",
        )  # fmt: skip
        plan = build_plan(parse_spec(text))
        self.run, self.peak_flops = plan.runs[0], plan.cluster.peak_flops
        prepare = find("prepare_tokens", "flopsfit_ds.train.data.token_file", "flopsfit_ds.train.tokens")
        workload = find("TokenWorkload", "flopsfit_ds.train.data.tokens", "flopsfit_ds.train.tokens")
        tokens = prepare(plan.corpus, Path(options.folder) / f"{options.contender}-tokens", 256)
        self.workload = workload(self.run.model, tokens)
        self.options = options

    def batches(self) -> Iterator[Any]:
        """The run's own batches, one after another; which samples they hold was found before."""
        sampling = find("samples_of_step", "flopsfit_ds.train.data.sampling", "flopsfit_ds.train.sampling")
        run, samples = self.run, self.workload.num_training_samples
        steps = range(min(run.num_steps, 2000))
        chosen = [sampling(step, run.global_batch_sequences, samples, run.seed) for step in steps]
        for indices in itertools.cycle(chosen):
            yield tuple(part.to(self.device, non_blocking=True) for part in self.workload.training_batch(indices))

    @property
    def device(self) -> Any:
        """Where batches go."""
        import torch

        return torch.device("cuda", 0) if self.options.device == "cuda" else torch.device("cpu")

    def autocast(self) -> Any:
        """The precision's context."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def model_and_optimizer(self) -> tuple[Any, Any]:
        """The run's model and its AdamW, with decay on matrices only."""
        import torch

        recipe = self.run.recipe
        torch.manual_seed(self.run.seed)
        with self.device:
            model = self.workload.build_model(False)
        if self.options.compiled:
            for block in model.blocks:
                block.compile()
        matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
        others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return model, torch.optim.AdamW(groups, lr=1e-3, betas=(recipe.beta1, recipe.beta2), fused=True)


class Parts:
    """Seconds by part, of calls that may lie within one another: what is inside does not count outside."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = {}
        self._clock, self._inside = clock, [0.0]

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        @functools.wraps(call)
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            began = self._clock()
            self._inside.append(0.0)
            try:
                return call(*arguments, **keywords)
            finally:
                seconds, inner = self._clock() - began, self._inside.pop()
                self._inside[-1] += seconds
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds - inner

        return wrapped

    def watch(self, owner: Any, **names: str) -> None:
        """Time attributes of an object, where it has them."""
        for attribute, name in names.items():
            if hasattr(owner, attribute):
                setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))


class Gate:
    """Trains on when it is asked to, and says what that took."""

    def __init__(self, setting: Setting, parts: Parts | None = None) -> None:
        self.cuda, self.parts, self.left = setting.options.device == "cuda", parts, WARMUP_STEPS + 1
        run, peak = setting.run, setting.peak_flops
        self.facts = {"tokens": run.num_tokens / run.num_steps, "flops": run.flops / run.num_steps, "peak_flops": peak}
        self.begin()

    def begin(self) -> None:
        """Start the clocks."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def step(self, *_: Any) -> None:
        """A step is done; at the last one that was asked for, answer and wait."""
        self.left -= 1
        if self.left:
            return
        answer: dict[str, Any] = {}
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            answer = self.facts | {"peak": torch.cuda.max_memory_allocated()}
        answer |= {"cpu": time.process_time() - self.cpu, "wall": time.perf_counter() - self.wall}
        if self.parts is not None:
            answer["parts"], self.parts.seconds = self.parts.seconds, {}
        ANSWERS.write(json.dumps(answer) + "\n")
        ANSWERS.flush()
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left = int(line)
        self.begin()


def train_ours(setting: Setting, *, with_parts: bool = False) -> None:
    """The worker's own session and loop, with its heartbeat and metrics."""
    import torch.distributed as dist

    order_module = importlib.import_module("flopsfit_ds.train.order")
    worker = importlib.import_module("flopsfit_ds.train.worker")
    loop = importlib.import_module("flopsfit_ds.train.loop")
    resume = find("ResumePoint", "flopsfit_ds.train.checkpoint.resume", "flopsfit_ds.train.resume")
    run, options = setting.run, setting.options
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": store.port}
    os.environ.update({name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1"})
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    folder = Path(options.folder) / f"{options.contender}-run"
    folder.mkdir()
    order = order_module.WorkerOrder(
        run_folder=str(folder), attempt=1, rank=0, world_size=1, local_rank=0, local_world_size=1,
        device_index=0 if options.device == "cuda" else None, store_host="127.0.0.1", store_port=store.port,
        num_threads=options.threads, zero_stage=0, offload="none",
        micro_batch_size_per_gpu=run.global_batch_sequences, gradient_accumulation_steps=1,
        activation_checkpointing=False,
    )  # fmt: skip
    task = order_module.WorkerTask(run, setting.workload, checkpoint_every_seconds=1e9, peak_flops=None)
    session = worker.open_session(order, run, setting.workload)
    heartbeat = worker.Heartbeat(order)
    parts = Parts(time.perf_counter if options.device == "cuda" else time.process_time) if with_parts else None
    gate = Gate(setting, parts)
    beat = heartbeat
    if parts is not None:
        parts.watch(loop, samples_of_step="data", share_of_rank="data", weighted_batches="data", to_device="data")
        parts.watch(loop, weighted_loss="model and loss", seed_everything="seeds")
        parts.watch(type(setting.workload), training_batch="data")
        parts.watch(session.accelerator, backward="backward")
        parts.watch(session.engine, forward="model and loss", step="engine: step", _backward_epilogue="engine: reduce")
        parts.watch(session.engine, clip_fp32_gradients="engine: clip", zero_grad="engine: clear")
        parts.watch(session.engine.optimizer, step="optimiser")
        parts.watch(loop.MetricsLog, log="metrics")
        beat = parts.timed("heartbeat", heartbeat)

    def step_done(message: str) -> None:
        beat(message)
        gate.step()

    loop.train(
        session, order, task, resume(), heartbeat=step_done, pulse=heartbeat.pulse, resumed=heartbeat.resumed,
        saved=heartbeat.saved, stop_requested=lambda: False,
    )  # fmt: skip


def train_bare(setting: Setting) -> None:
    """PyTorch alone."""
    import torch

    model, optimizer = setting.model_and_optimizer()
    gate = Gate(setting)
    for batch in setting.batches():
        optimizer.zero_grad()
        with setting.autocast():
            loss = setting.workload.loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        gate.step()


def train_accelerate(setting: Setting) -> None:
    """Accelerate without DeepSpeed."""
    from accelerate import Accelerator

    precision = "bf16" if setting.options.precision == "bf16" else "no"
    accelerator = Accelerator(cpu=setting.options.device == "cpu", mixed_precision=precision)
    model, optimizer = accelerator.prepare(*setting.model_and_optimizer())
    gate = Gate(setting)
    for batch in setting.batches():
        with accelerator.accumulate(model):
            with accelerator.autocast():
                loss = setting.workload.loss(model, batch)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        loss.item()
        gate.step()


def train_trainer(setting: Setting) -> None:
    """The Trainer of transformers, as it logs by default: the loss every 500 steps."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    workload, run = setting.workload, setting.run
    model, optimizer = setting.model_and_optimizer()

    class WithLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Any, labels: Any) -> dict[str, Any]:
            return {"loss": workload.loss(self.model, (inputs, labels))}

    class Windows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return workload.num_training_samples

        def __getitem__(self, index: int) -> dict[str, Any]:
            import numpy

            inputs, labels = workload.training_batch(numpy.array([index]))
            return {"inputs": inputs[0], "labels": labels[0]}

    gate = Gate(setting)

    class AtStep(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            gate.step()

    arguments = TrainingArguments(
        output_dir=str(Path(setting.options.folder) / "trainer"), use_cpu=setting.options.device == "cpu",
        per_device_train_batch_size=run.global_batch_sequences, max_steps=10**6, max_grad_norm=1.0, report_to=[],
        save_strategy="no", bf16=setting.options.precision == "bf16", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    Trainer(
        WithLoss(), arguments, train_dataset=Windows(), optimizers=(optimizer, schedule), callbacks=[AtStep()]
    ).train()


CONTENDERS: dict[str, Callable[[Setting], None]] = {
    "bare": train_bare,
    "ours": train_ours,
    "baseline": train_ours,
    "accelerate": train_accelerate,
    "trainer": train_trainer,
    "parts": functools.partial(train_ours, with_parts=True),
}


class Contender:
    """A process that trains a number of steps when asked."""

    def __init__(self, name: str, options: argparse.Namespace, size: str, folder: str, tree: Path) -> None:
        command = [sys.executable, __file__, "--contender", name, "--size", size, "--folder", folder]
        command += ["--device", options.device, "--precision", options.precision, "--threads", str(options.threads)]
        command += ["--compiled"] if options.compiled else []
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(options.threads)}
        self.log = Path(folder) / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
            )
        self.answer()

    def answer(self) -> dict[str, Any]:
        """What the steps that were asked for last took."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def train(self, steps: int) -> dict[str, Any]:
        """Train so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def tree_of(reference: str | None, folder: str) -> Iterator[Path]:
    """A worktree of an earlier commit for a while; this tree without one."""
    if reference is None:
        yield ROOT
        return
    tree = Path(folder) / "baseline"
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), reference], check=True)
    try:
        yield tree
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)


def measure(size: str, options: argparse.Namespace, tree: Path) -> None:
    """Print a size's row of the table, and where the time goes."""
    names = [*options.against, "ours", "parts"] + (["baseline"] if options.baseline else [])
    measured = "wall" if options.device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        words = [b"the ", b"model ", b"learns ", b"tokens ", b"of ", b"scaling ", b"laws ", b"and ", b"loss. "]
        draw = random.Random(0)
        (Path(folder) / "corpus.txt").write_bytes(b"".join(draw.choice(words) for _ in range(400_000)))
        contenders = {}
        for name in names:
            contenders[name] = Contender(name, options, size, folder, tree if name == "baseline" else ROOT)
            stack.callback(contenders[name].close)
        once = contenders["bare"].train(5)[measured] / 5
        steps = max(3, round(options.seconds / once))
        rounds: list[dict[str, dict[str, Any]]] = []
        for _ in range(options.rounds):
            draw.shuffle(names)
            rounds.append({name: contenders[name].train(steps) for name in names})
    milliseconds = {name: statistics.median(found[name][measured] for found in rounds) / steps * 1e3 for name in names}
    print(f"{size}: {steps} steps a round, {options.rounds} rounds, {options.precision}")
    for name in sorted(set(names) - {"parts"}, key=lambda name: milliseconds[name]):
        ratio = statistics.median(found["bare"][measured] / found[name][measured] for found in rounds)
        line = f"  {name:11s} {milliseconds[name]:9.3f} ms a step   bare/it {ratio:.3f}"
        if options.device == "cuda":
            line += f"   peak {max(found[name]['peak'] for found in rounds) / 2**30:.2f} GiB"
            line += _throughput(rounds[0][name], milliseconds[name] / 1e3)
        print(line)
    parts: dict[str, float] = {}
    for found in rounds:
        for name, seconds in found["parts"]["parts"].items():
            parts[name] = parts.get(name, 0.0) + seconds / (steps * options.rounds) * 1e3
    rest = statistics.mean(found["parts"][measured] for found in rounds) / steps * 1e3 - sum(parts.values())
    shown = ", ".join(f"{name} {value:.3f}" for name, value in sorted(parts.items(), key=lambda part: -part[1]))
    print(f"  ours by part, ms, timers included: {shown}, rest {rest:.3f}", flush=True)


def _throughput(answer: dict[str, Any], seconds: float) -> str:
    """Tokens a second, and the model's FLOPs over what the device could do."""
    used = answer["flops"] / seconds / answer["peak_flops"]
    return f"   {answer['tokens'] / seconds:,.0f} tokens/s   MFU {used:.3f}"


def main() -> None:
    """Measure what is asked for; with `--contender`, be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sizes", nargs="+", help="all without any")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="fp32 on a CPU, bf16 on a GPU without it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a contender in a round, about")
    parser.add_argument("--against", nargs="+", default=["bare", "accelerate", "trainer"], choices=list(CONTENDERS))
    parser.add_argument("--baseline", help="a commit of this project to measure too")
    parser.add_argument("--compiled", action="store_true", help="compile the others' models by block")
    for hidden in ("--contender", "--size", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device == "cuda" else "fp32")
    if options.contender:
        import torch

        torch.set_num_threads(options.threads)
        CONTENDERS[options.contender](Setting(options))
        return
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("--device cuda: PyTorch sees no GPU here")
    sizes = options.sizes or (CUDA_SIZES if options.device == "cuda" else CPU_SIZES)
    with tempfile.TemporaryDirectory() as folder, tree_of(options.baseline, folder) as tree:
        for size in sizes:
            measure(size, options, tree)


if __name__ == "__main__":
    ANSWERS = os.fdopen(os.dup(1), "w")
    if "--contender" in sys.argv:
        os.dup2(2, 1)  # what libraries print must not get between the answers
    main()

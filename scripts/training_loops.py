"""The loops that `bench_train.py` compares: ours and what others write, each in a process that trains when asked."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

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

    def __init__(self, options: argparse.Namespace, answers: IO[str]) -> None:
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
        self.options, self.answers = options, answers

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
        self.answers = setting.answers
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
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()
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
        micro_batch_size_per_gpu=run.global_batch_sequences // options.accumulation,
        gradient_accumulation_steps=options.accumulation,
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
        for part in zip(*(each.chunk(setting.options.accumulation) for each in batch), strict=True):
            with setting.autocast():
                loss = setting.workload.loss(model, part)
            (loss / setting.options.accumulation).backward()
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

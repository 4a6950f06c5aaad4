"""What a training step costs here, against loops that others write: same model, batches, precision and threads.

python scripts/bench_train.py                        CPU, fp32, 128 tokens a step: 83 k, 1 M, 10 M and 60 M parameters
python scripts/bench_train.py --baseline 9504527     and an earlier commit of this project, from a worktree of it
python scripts/bench_train.py --precision bf16 --accumulation 4 --against bare --baseline d6e00df
                                                     weights cast once a step
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
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from training_loops import (
    CPU_SIZES,
    CUDA_SIZES,
    Setting,
    train_accelerate,
    train_bare,
    train_ours,
    train_trainer,
)

ROOT = Path(__file__).resolve().parents[1]
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
        command += ["--accumulation", str(options.accumulation)] + (["--compiled"] if options.compiled else [])
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


def main(answers: IO[str]) -> None:
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
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step, against `bare` alone")
    for hidden in ("--contender", "--size", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device == "cuda" else "fp32")
    if options.contender:
        import torch

        torch.set_num_threads(options.threads)
        CONTENDERS[options.contender](Setting(options, answers))
        return
    if options.accumulation > 1 and options.against != ["bare"]:
        raise SystemExit("--accumulation: only the bare loop splits its batches; write --against bare")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("--device cuda: PyTorch sees no GPU here")
    sizes = options.sizes or (CUDA_SIZES if options.device == "cuda" else CPU_SIZES)
    with tempfile.TemporaryDirectory() as folder, tree_of(options.baseline, folder) as tree:
        for size in sizes:
            measure(size, options, tree)


if __name__ == "__main__":
    answers_to_asker = os.fdopen(os.dup(1), "w")
    if "--contender" in sys.argv:
        os.dup2(2, 1)  # what libraries print must not get between the answers
    main(answers_to_asker)

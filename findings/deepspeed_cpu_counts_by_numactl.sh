#!/usr/bin/env bash
# ZeRO-3 on a CPU starts a process, `numactl --hardware`, for each gradient bucket that it reduces, unless LOCAL_SIZE is set.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: a training step starts no process.
# Seen: averaging gradients asks how many devices there are, which the accelerator for CPUs answers by running
#   `numactl` (whether it is installed or not) each time; what it answers matters only to quantised gradients.
# Output:
#   processes started in ten steps: 40 without LOCAL_SIZE, 0 with it
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet torch==2.13.0 deepspeed==0.19.8 numpy==2.4.6 setuptools
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("torch").partition("+")[0] == "2.13.0"
assert version("deepspeed").partition("+")[0] == "0.19.8"
import os, socket, subprocess

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(
    RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu"
)
os.environ.pop("LOCAL_SIZE", None)
import deepspeed, torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # spares compiling an extension

model = torch.nn.Sequential(*(torch.nn.Linear(16, 16, bias=False) for _ in range(4)))
config = {
    "train_batch_size": 4,
    "zero_optimization": {"stage": 3, "reduce_bucket_size": 256},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
    "zero_force_ds_cpu_optimizer": False,
}
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
started, ask = [], subprocess.check_output


def counting(command, *arguments, **options):
    started.append(command)
    return ask(command, *arguments, **options)


subprocess.check_output = counting


def ten_steps():
    del started[:]
    for _ in range(10):
        engine.backward(engine(torch.ones(4, 16)).sum())
        engine.step()
    assert all(command == ["numactl", "--hardware"] for command in started)
    return len(started)


without = ten_steps()
os.environ["LOCAL_SIZE"] = "1"
told = ten_steps()
print(f"processes started in ten steps: {without} without LOCAL_SIZE, {told} with it")
assert (without, told) == (40, 0)
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

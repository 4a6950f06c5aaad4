#!/usr/bin/env bash
# What a NaN gradient does depends on the ZeRO stage, in fp32.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: The same at every stage.
# Seen: Stage 0 writes NaN into the weights. Stages 1 to 3 skip the step and count it in skipped_steps,
#   while global_steps goes on as if it had been taken.
# Output:
#   stage 0 loss after nan skipped 0 global_steps 1
#   stage 1 loss after -19.4192 skipped 1 global_steps 1
#   stage 2 loss after -19.4192 skipped 1 global_steps 1
#   stage 3 loss after -19.4192 skipped 1 global_steps 1
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
import os, socket

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(
    RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu"
)
import deepspeed, torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # spares compiling an extension

import math

for stage in (0, 1, 2, 3):
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64, bias=False)
    config = {
        "train_batch_size": 4,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    engine.backward(engine(torch.ones(4, 64)).sum() * float("nan"))
    engine.step()
    loss = engine(torch.ones(4, 64)).sum().item()
    print(
        "stage",
        stage,
        "loss after",
        round(loss, 4),
        "skipped",
        engine.skipped_steps,
        "global_steps",
        engine.global_steps,
    )
    assert math.isnan(loss) == (stage == 0) and engine.skipped_steps == (stage > 0) and engine.global_steps == 1
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

#!/usr/bin/env bash
# A ZeRO-3 engine replaces torch.nn.functional.linear, and destroy() does not give it back.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: After engine.destroy() the function is PyTorch's again.
# Seen: It stays DeepSpeed's for the rest of the process: a later model without DeepSpeed computes through
#   its autograd function.
# Output:
#   zero3_linear_wrap LinearFunctionForZeroStage3Backward
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

before = torch.nn.functional.linear
model = torch.nn.Linear(8, 8)
config = {
    "train_batch_size": 4,
    "zero_optimization": {"stage": 3},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
    "zero_force_ds_cpu_optimizer": False,
}
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
engine.destroy()
later = torch.nn.Linear(3, 3)(torch.ones(2, 3))
print(torch.nn.functional.linear.__name__, type(later.grad_fn).__name__)
assert torch.nn.functional.linear is not before and "Zero" in type(later.grad_fn).__name__
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

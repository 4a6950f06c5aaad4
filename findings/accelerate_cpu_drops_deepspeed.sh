#!/usr/bin/env bash
# Accelerator(cpu=True) forgets the DeepSpeed plugin that it was given.
#
# Versions: torch==2.13.0 deepspeed==0.19.8 accelerate==1.15.0 transformers==5.24.0; CPU, Python 3.11.
# Expected: An engine at ZeRO stage 2, or an error that the two exclude each other.
# Seen: prepare() returns a module that is no DeepSpeedEngine, and the state holds no plugin; nothing is
#   raised.
# Output:
#   DistributedType.MULTI_CPU DistributedDataParallel None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet torch==2.13.0 deepspeed==0.19.8 accelerate==1.15.0 transformers==5.24.0 setuptools
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("torch").partition("+")[0] == "2.13.0"
assert version("deepspeed").partition("+")[0] == "0.19.8"
assert version("accelerate").partition("+")[0] == "1.15.0"
assert version("transformers").partition("+")[0] == "5.24.0"
import os, socket

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(
    RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu"
)
import deepspeed, torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # spares compiling an extension

from accelerate import Accelerator, DeepSpeedPlugin

plugin = DeepSpeedPlugin(hf_ds_config={"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2}})
accelerator = Accelerator(cpu=True, deepspeed_plugin=plugin)
model = torch.nn.Linear(4, 4)
model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
print(accelerator.distributed_type, type(model).__name__, accelerator.state.deepspeed_plugin)
assert not isinstance(model, deepspeed.DeepSpeedEngine) and accelerator.state.deepspeed_plugin is None
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

#!/usr/bin/env bash
# accelerator.clip_grad_norm_ does not clip under DeepSpeed.
#
# Versions: torch==2.13.0 deepspeed==0.19.8 accelerate==1.15.0 transformers==5.24.0; CPU, Python 3.11.
# Expected: An SGD step of rate 1 after clip_grad_norm_(parameters, 1e-6) moves the weights by 1e-6.
# Seen: It moves them by 256, the whole gradient; only gradient_clipping of the DeepSpeed configuration
#   counts. Nothing is said.
# Output:
#   clip_grad_norm_ returned 256.0 and the weights moved by 256.0
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

config = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_clipping": 0.0,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
model = torch.nn.Linear(64, 64, bias=False)
before = model.weight.detach().clone()
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
accelerator.backward(model(torch.ones(4, 64)).sum())
norm = accelerator.clip_grad_norm_(model.parameters(), 1e-6)
optimizer.step()
moved = (model.module.weight.detach() - before).norm().item()
print("clip_grad_norm_ returned", norm, "and the weights moved by", moved)
assert moved > 255
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

#!/usr/bin/env bash
# A misspelt section of a DeepSpeed configuration is ignored, a misspelt key inside it is an error.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: Both refused, as the second is.
# Seen: zero_optimisation and gradient_clip at the top level train without ZeRO and with the default
#   clipping of 1.0; inside zero_optimization an unknown key raises ValidationError.
# Output:
#   stage 0 clipping 1.0
#   ValidationError
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

optimizer = {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}}
model = torch.nn.Linear(4, 4)
engine, *_ = deepspeed.initialize(
    model=model,
    model_parameters=model.parameters(),
    config={
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimisation": {"stage": 3},
        "gradient_clip": 0.5,
        "optimizer": optimizer,
    },
)
print("stage", engine.zero_optimization_stage(), "clipping", engine.gradient_clipping())
assert (engine.zero_optimization_stage(), engine.gradient_clipping()) == (0, 1.0)
try:
    deepspeed.initialize(
        model=model, config={"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1, "stge": 2}}
    )
except Exception as error:
    print(type(error).__name__)
    assert type(error).__name__ == "ValidationError"
else:
    raise SystemExit("an unknown key inside a section is accepted now")
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

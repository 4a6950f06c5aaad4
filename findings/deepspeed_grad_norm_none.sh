#!/usr/bin/env bash
# With clipping on, the gradient's norm can be asked for at ZeRO-1 to 3 and is None at ZeRO-0, in fp32.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: get_global_grad_norm() after a step gives 256 at every stage.
# Seen: None at stage 0, 256 at 1, 2 and 3: a norm logged over a sweep is missing for just the points that
#   fit on one GPU.
# Output:
#   norm by stage: [None, 256.0, 256.0, 256.0]
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

norms = []
for stage in (0, 1, 2, 3):
    model = torch.nn.Linear(64, 64, bias=False)
    config = {
        "train_batch_size": 4,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    engine.backward(engine(torch.ones(4, 64)).sum())
    engine.step()
    norms.append(engine.get_global_grad_norm())
norms = [None if norm is None else float(norm) for norm in norms]
print("norm by stage:", norms)
assert norms == [None, 256.0, 256.0, 256.0]
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

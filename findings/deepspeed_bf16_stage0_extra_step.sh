#!/usr/bin/env bash
# In bf16 mode ZeRO-0 starts with one optimiser step more than ZeRO-1 and 2.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: After one call of step() Adam's counter is 1 at every stage.
# Seen: It is 2 at stage 0, whose wrapper steps on zero gradients at start: bias correction and weight decay
#   run one step ahead.
# Output:
#   Adam's counter after one step, by stage: {0: [2.0], 1: [1.0], 2: [1.0]}
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

counts = {}
for stage in (0, 1, 2):
    model = torch.nn.Linear(4, 4, bias=False)
    adam = torch.optim.AdamW(model.parameters(), lr=0.1)
    config = {
        "train_batch_size": 4,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
    engine.backward(engine(torch.ones(4, 4, dtype=torch.bfloat16)).float().sum())
    engine.step()
    counts[stage] = [float(state["step"]) for state in adam.state.values() if "step" in state]
print("Adam's counter after one step, by stage:", counts)
assert counts == {0: [2.0], 1: [1.0], 2: [1.0]}
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

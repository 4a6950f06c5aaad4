#!/usr/bin/env bash
# Muon under DeepSpeed is clipped after it has made its update at ZeRO-1 to 3, and before at ZeRO-0.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: Muon's step does not depend on the size of a gradient, nor on the ZeRO stage: with gradient_clipping a weight
#   moves as far at ZeRO-2 as at ZeRO-0.
# Seen: At ZeRO-2 the norm that is clipped is that of the orthogonalised update: the step is as small as the limit.
# Output:
#   ZeRO-0 moved by 0.189; ZeRO-2 moved by 0.001
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
    RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu",
    TORCHDYNAMO_DISABLE="1",
)
import deepspeed, torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # spares compiling an extension
moved = []
for stage in (0, 2):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8, bias=False)
    before = model.weight.detach().clone()
    config = {
        "train_batch_size": 4,
        "gradient_clipping": 0.01,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "Muon", "params": {"muon_lr": 0.1, "adam_lr": 0.1, "momentum": 0.9}},
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    engine.backward(engine(torch.randn(4, 8)).square().sum())
    engine.step()
    moved.append(float((engine.module.weight.detach() - before).norm()))
print(f"ZeRO-0 moved by {moved[0]:.3f}; ZeRO-2 moved by {moved[1]:.3f}")
assert moved[0] > 100 * moved[1]
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

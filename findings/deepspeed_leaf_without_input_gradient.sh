#!/usr/bin/env bash
# A ZeRO-3 leaf module behind frozen layers cannot be trained.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: The weight of the leaf moves as it does where the module is no leaf. DeepSpeed makes leaves of the expert
#   blocks of Mixtral, Qwen2-MoE and Qwen3-MoE by itself.
# Seen: An error about sizes in the backward pass: gradients of a leaf are reduced by its backward hook, which comes
#   before they are there where the module's input needs no gradient.
# Output:
#   no leaf: moved by 0.01; leaf: RuntimeError: The size of tensor a (0) must match the size of tensor b (8) at non-singleton dimension 1
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
import os, socket, sys

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(
    RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu"
)
import deepspeed, torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # spares compiling an extension
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()))
model[0].requires_grad_(False)
config = {
    "train_batch_size": 4,
    "gradient_clipping": 0.0,
    "zero_optimization": {"stage": 3},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.0, "torch_adam": True}},
    "zero_force_ds_cpu_optimizer": False,
}
if sys.argv[1] == "leaf":
    config["zero_optimization"]["leaf_module"] = {"names": ["1"]}
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=config)
before = model[1][0].weight.ds_tensor.clone()
loss = engine(torch.randn(4, 8)).square().mean()
try:
    engine.backward(loss)
except RuntimeError as error:
    print(f"RuntimeError: {error}")
    sys.exit()
engine.step()
print(round((model[1][0].weight.ds_tensor - before).abs().max().item(), 4))
PYTHON
plain=$("$FINDINGS_VENV/bin/python" probe.py plain 2>log | tail -n 1) || { tail -n 20 log >&2; exit 1; }
leaf=$("$FINDINGS_VENV/bin/python" probe.py leaf 2>log | tail -n 1) || { tail -n 20 log >&2; exit 1; }
echo "no leaf: moved by $plain; leaf: $leaf"
[ "$plain" = 0.01 ] && [[ $leaf == *"size of tensor a (0)"* ]]

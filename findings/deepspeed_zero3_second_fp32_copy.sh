#!/usr/bin/env bash
# ZeRO-3 over fp32 parameters holds every parameter twice in fp32.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: One fp32 copy: the partitioned parameter and the optimiser's master share it, as fp32 needs no
#   master.
# Seen: Two storages of the same type on the same device: 4 bytes a parameter more than ZeRO-1. The branch
#   that would share them compares a device with a string.
# Output:
#   torch.float32 cpu torch.float32 cpu equal values: True shared storage: False
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
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu")
import deepspeed, torch
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # spares compiling an extension

model = torch.nn.Linear(64, 64, bias=False)
config = {"train_batch_size": 4, "zero_optimization": {"stage": 3}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}}, "zero_force_ds_cpu_optimizer": False}
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
shard, master = model.weight.ds_tensor, engine.optimizer.fp32_partitioned_groups_flat[0]
shared = shard.untyped_storage().data_ptr() == master.untyped_storage().data_ptr()
print(shard.dtype, shard.device, master.dtype, master.device, "equal values:", torch.equal(shard.flatten(), master), "shared storage:", shared)
assert shard.dtype == master.dtype == torch.float32 and torch.equal(shard.flatten(), master) and not shared
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

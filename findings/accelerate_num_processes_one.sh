#!/usr/bin/env bash
# On a host without GPU every rank of a DeepSpeed world of 2 believes it is alone.
#
# Versions: torch==2.13.0 deepspeed==0.19.8 accelerate==1.15.0 transformers==5.24.0; CPU, Python 3.11.
# Expected: num_processes 2, one main process, and each rank its own half of the data.
# Seen: num_processes 1 and is_main_process True on both ranks, which read the same first batch of all 8;
#   torch.distributed has 2 ranks.
# Output:
#   rank 1 1 True 2 [0.0, 1.0] 8
#   rank 0 1 True 2 [0.0, 1.0] 8
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
import deepspeed, torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # spares compiling an extension
from accelerate import Accelerator, DeepSpeedPlugin

config = {
    "train_micro_batch_size_per_gpu": 2,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
model = torch.nn.Linear(4, 4)
batches = torch.utils.data.DataLoader(torch.arange(16.0).reshape(16, 1), batch_size=2)
model, _, batches = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), batches)
seen = (
    accelerator.num_processes,
    accelerator.is_main_process,
    torch.distributed.get_world_size(),
    next(iter(batches)).flatten().tolist(),
    len(batches),
)
print("rank", torch.distributed.get_rank(), *seen, flush=True)
assert seen == (1, True, 2, [0.0, 1.0], 8), seen
PYTHON
DS_ACCELERATOR=cpu "$FINDINGS_VENV/bin/torchrun" --standalone --nproc-per-node 2 probe.py 2>log || { tail -n 20 log >&2; exit 1; }

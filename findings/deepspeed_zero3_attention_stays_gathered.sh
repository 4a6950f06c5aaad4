#!/usr/bin/env bash
# At ZeRO-3 the packed projection of `nn.MultiheadAttention` stays gathered from its forward pass to its backward pass.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: A module's parameters are let go after its forward pass and gathered again for its backward pass, as those of a
#   linear layer of the same size are.
# Seen: Hooks of ZeRO-3 give self-attention three tensors where it was called with one, so that it cuts its weight into three
#   views; autograd keeps them, and with them the gathered weight of every layer, although the parameter is empty.
# Output:
#   linear: 3 of 3 weights let go after the forward pass, 0 kept whole for the backward
#   attention: 3 of 3 weights let go after the forward pass, 3 kept whole for the backward; query is key: False
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
assert version("numpy").partition("+")[0] == "2.4.6"
import os, socket, subprocess, sys

WIDTH, LAYERS = 64, 3

if len(sys.argv) == 1:
    for kind in ("linear", "attention"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, kind],
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "DS_ACCELERATOR": "cpu",
                    "OMP_NUM_THREADS": "1",
                },
                stdout=None if rank == 0 else subprocess.DEVNULL,
            )
            for rank in (0, 1)
        ]
        assert [rank.wait() for rank in ranks] == [0, 0]
    sys.exit()

import deepspeed, torch
from torch import nn

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # spares compiling an extension


class Attention(nn.MultiheadAttention):
    one = True

    def forward(self, query, key, value):
        Attention.one = query is key
        return super().forward(query, key, value, need_weights=False)[0]


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        attends = kind == "attention"
        self.layers = nn.ModuleList(
            Attention(WIDTH, 4, batch_first=True) if attends else nn.Linear(WIDTH, 3 * WIDTH) for _ in range(LAYERS)
        )

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = x + (layer(x, x, x) if isinstance(layer, Attention) else layer(x)[..., :WIDTH])
        return x


kind = sys.argv[1]
torch.manual_seed(0)
model = Model(kind)
engine, *_ = deepspeed.initialize(
    model=model,
    model_parameters=model.parameters(),
    config={
        "train_batch_size": 4,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 3, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_force_ds_cpu_optimizer": False,
    },
)
packed = [layer.in_proj_weight if kind == "attention" else layer.weight for layer in model.layers]
kept = {}


def pack(tensor):
    storage = tensor.untyped_storage()
    if storage.nbytes() == 4 * 3 * WIDTH * WIDTH and not isinstance(tensor, nn.Parameter):
        kept[storage.data_ptr()] = storage
    return tensor


with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
    loss = engine(torch.randn(2, 8, WIDTH)).square().mean()
empty = sum(weight.numel() == 0 for weight in packed)
note = f"; query is key: {Attention.one}" if kind == "attention" else ""
print(f"{kind}: {empty} of {LAYERS} weights let go after the forward pass, {len(kept)} kept whole for the backward{note}")
engine.backward(loss)
engine.step()
assert empty == LAYERS
assert len(kept) == (LAYERS if kind == "attention" else 0)
assert Attention.one == (kind == "linear")
sys.stdout.flush()
os._exit(0)  # the threads of the process group are not waited for
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

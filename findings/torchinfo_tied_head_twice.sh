#!/usr/bin/env bash
# torchinfo counts the weight that a head shares with its embedding twice.
#
# Versions: torch==2.13.0 torchinfo==1.8.0; CPU, Python 3.11.
# Expected: 6,400 parameters for an embedding of 100 x 64 whose weight is the output head's too, as `Module.parameters()` gives.
# Seen: 12,800, total and trainable; a weight of one layer that is called twice counts once.
# Output:
#   tied: 12800 trainable 12800 by torch 6400
#   one layer called twice: 4096
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet torch==2.13.0 torchinfo==1.8.0
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("torch").partition("+")[0] == "2.13.0"
assert version("torchinfo").partition("+")[0] == "1.8.0"
import torch
from torch import nn
from torchinfo import summary


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        self.head = nn.Linear(64, 100, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)

    def forward(self, x):
        return self.layer(self.layer(x))


tied = summary(Tied(), input_data=torch.zeros(2, 16, dtype=torch.long), verbose=0)
twice = summary(Twice(), input_data=torch.randn(2, 64), verbose=0)
own = sum(parameter.numel() for parameter in Tied().parameters())
print("tied:", tied.total_params, "trainable", tied.trainable_params, "by torch", own)
print("one layer called twice:", twice.total_params)
assert own == 6400 and tied.total_params == tied.trainable_params == 12800 and twice.total_params == 4096
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

#!/usr/bin/env bash
# `FlopCounterMode` counts nothing for an LSTM on a CPU, nor for an encoder layer that only evaluates.
#
# Versions: torch==2.13.0; CPU, Python 3.11.
# Expected: An LSTM and a GRU of 64 units over 2 x 16 steps count 2,097,152 and 1,572,864; an encoder layer counts in evaluation
#   what its products count in training.
# Seen: The LSTM counts 0 on a CPU and the right number on meta, the GRU is right on both; the encoder layer counts 0 as soon
#   as it is in evaluation mode without gradients, where it takes one fused operation. Nothing is said.
# Output:
#   LSTM cpu 0 by hand 2097152
#   LSTM meta 2097152 by hand 2097152
#   GRU cpu 1572864 by hand 1572864
#   GRU meta 1572864 by hand 1572864
#   encoder layer: training 2097152 evaluation 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet torch==2.13.0
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("torch").partition("+")[0] == "2.13.0"
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count(module, x):
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


x = torch.randn(2, 16, 64)
seen = {}
for kind, gates in ((nn.LSTM, 4), (nn.GRU, 3)):
    for device in ("cpu", "meta"):
        seen[kind.__name__, device] = count(kind(64, 64, batch_first=True, device=device), x.to(device))
        print(kind.__name__, device, seen[kind.__name__, device], "by hand", 2 * 2 * 16 * 64 * 64 * 2 * gates)
layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
training = count(layer, x)
layer.eval()
with torch.no_grad():
    evaluation = count(layer, x)
print("encoder layer: training", training, "evaluation", evaluation)
assert seen["LSTM", "cpu"] == 0 and seen["LSTM", "meta"] == 2097152
assert seen["GRU", "cpu"] == seen["GRU", "meta"] == 1572864
assert training > 2_000_000 and evaluation == 0
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

#!/usr/bin/env bash
# thop gives 0 parameters to every module that it has no rule for, and adds up the rest without a word.
#
# Versions: torch==2.13.0 thop==0.1.1-2209072238; CPU, Python 3.11.
# Expected: The number of parameters is that of `Module.parameters()`, or an error or a note where a part is unknown.
# Seen: 0 for multi-head attention, an LSTM and a module with a matrix of its own; an encoder layer has half of its
#   parameters. Its multiply-accumulates of attention and of the own matrix are 0, too; those of the LSTM are not.
# Output:
#   attention: 0 parameters of 16640, MACs 0
#   lstm: 0 parameters of 33280, MACs 1081344
#   own matrix: 0 parameters of 4096, MACs 0
#   encoder layer: 16832 parameters of 33472, MACs 540672
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet torch==2.13.0 thop==0.1.1-2209072238 setuptools
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("torch").partition("+")[0] == "2.13.0"
assert version("thop").partition("+")[0] == "0.1.1-2209072238"
import torch
from thop import profile
from torch import nn


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64))

    def forward(self, x):
        return x @ self.weight


x = torch.randn(2, 16, 64)
seen = {}
for name, module, arguments in (
    ("attention", nn.MultiheadAttention(64, 4, batch_first=True), (x, x, x)),
    ("lstm", nn.LSTM(64, 64, batch_first=True), (x,)),
    ("own matrix", Own(), (x,)),
    ("encoder layer", nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), (x,)),
):
    real = sum(parameter.numel() for parameter in module.parameters())
    macs, parameters = profile(module, inputs=arguments, verbose=False)
    seen[name] = (parameters, real, macs)
    print(f"{name}: {parameters:.0f} parameters of {real}, MACs {macs:.0f}")
assert all(seen[name][0] == 0 for name in ("attention", "lstm", "own matrix"))
assert 0.45 < seen["encoder layer"][0] / seen["encoder layer"][1] < 0.55
assert seen["attention"][2] == seen["own matrix"][2] == 0 and seen["lstm"][2] > 0
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

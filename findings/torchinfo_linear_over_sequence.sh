#!/usr/bin/env bash
# torchinfo counts a linear layer once a sample, however long the sequence.
#
# Versions: torch==2.13.0 torchinfo==1.8.0; CPU, Python 3.11.
# Expected: A layer of 64 x 64 over 2 sequences of 16 takes 16 times the multiply-adds of the same layer over 2 single vectors:
#   131,072.
# Seen: 8,192, whatever the length; a convolution of width 1, the same product, counts all positions. The total of a
#   transformer is too small by about its sequence length.
# Output:
#   linear over 1, 16 and 1,024 positions: 8192 8192 8192
#   convolution of width 1 over 16 positions: 131072 by hand 131072
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


def multiply_adds(module, *shape):
    return summary(module, input_data=torch.randn(*shape), verbose=0).total_mult_adds


single, short, long = (
    multiply_adds(nn.Linear(64, 64, bias=False), *shape) for shape in ((2, 64), (2, 16, 64), (2, 1024, 64))
)
convolution = multiply_adds(nn.Conv1d(64, 64, 1, bias=False), 2, 64, 16)
print("linear over 1, 16 and 1,024 positions:", single, short, long)
print("convolution of width 1 over 16 positions:", convolution, "by hand", 2 * 16 * 64 * 64)
assert single == short == long == 2 * 64 * 64 and convolution == 2 * 16 * 64 * 64
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

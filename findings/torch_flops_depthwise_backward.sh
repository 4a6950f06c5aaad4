#!/usr/bin/env bash
# FlopCounterMode counts the backward pass of a depthwise convolution as a dense one.
#
# Versions: torch==2.13.0; CPU, Python 3.11.
# Expected: Twice the forward pass, as for any linear operation whose input and weight need gradients.
# Seen: 65 times the forward pass at 64 channels (the weight's gradient as if all channels met), 3 times at
#   2 groups.
# Output:
#   backward over forward, by groups: {1: 2.0, 2: 3.0, 64: 65.0}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("torch").partition("+")[0] == "2.13.0"
import torch
from torch.utils.flop_counter import FlopCounterMode

ratios = {}
for groups in (1, 2, 64):
    signal = torch.randn(2, 64, 100, requires_grad=True)
    weight = torch.randn(64, 64 // groups, 5, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        result = torch.nn.functional.conv1d(signal, weight, groups=groups, padding=2)
    with FlopCounterMode(display=False) as backward:
        result.sum().backward()
    ratios[groups] = backward.get_total_flops() / forward.get_total_flops()
print("backward over forward, by groups:", ratios)
assert ratios == {1: 2.0, 2: 3.0, 64: 65.0}
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

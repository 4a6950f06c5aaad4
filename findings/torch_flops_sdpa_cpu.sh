#!/usr/bin/env bash
# FlopCounterMode counts attention as 0 on CPU tensors and in full on meta tensors.
#
# Versions: torch==2.13.0; CPU, Python 3.11.
# Expected: 4,194,304 FLOPs for scaled_dot_product_attention of shape (2, 4, 64, 32), wherever the tensors
#   are.
# Seen: 0 on the CPU, whose fused kernel has no formula; 4,194,304 on meta; causal masking halves neither.
# Output:
#   {('cpu', False): 0, ('cpu', True): 0, ('meta', False): 4194304, ('meta', True): 4194304}
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
counts = {}
for device in ("cpu", "meta"):
    query = torch.randn(2, 4, 64, 32, device=device)
    for causal in (False, True):
        with FlopCounterMode(display=False) as counter:
            torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=causal)
        counts[device, causal] = counter.get_total_flops()
print(counts)
full = 2 * 2 * 2 * 4 * 64 * 64 * 32
assert counts == {("cpu", False): 0, ("cpu", True): 0, ("meta", False): full, ("meta", True): full}
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

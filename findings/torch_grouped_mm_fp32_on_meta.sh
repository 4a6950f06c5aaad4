#!/usr/bin/env bash
# grouped_mm of fp32 tensors runs on the CPU, and is refused without memory.
#
# Versions: torch==2.13.0; CPU, Python 3.11.
# Expected: On meta and on fake tensors an operation takes the types that its kernel takes: models are
#   measured so before they are built.
# Seen: The CPU kernel multiplies fp32 (64 x 16 comes out); the shape function of the same call raises that
#   it expects bf16.
# Output:
#   cpu (64, 16) torch.float32
#   meta Expected inputs of BF16 type but got mat_a.dtype=torch.float32 and mat_b.dtype=torch.float32.
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
offsets = [16, 32, 48, 64]
for device in ("cpu", "meta"):
    rows, experts = torch.randn(64, 32, device=device), torch.randn(4, 32, 16, device=device)
    try:
        result = torch.nn.functional.grouped_mm(rows, experts, offs=torch.tensor(offsets, dtype=torch.int32, device=device))
        print(device, tuple(result.shape), result.dtype)
        assert device == "cpu"
    except RuntimeError as error:
        print(device, str(error).splitlines()[0][:110])
        assert device == "meta" and "BF16" in str(error)
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

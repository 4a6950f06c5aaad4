#!/usr/bin/env bash
# A number divided by a tensor is rounded twice: a clipping factor computed so is not the quotient.
#
# Versions: torch==2.13.0 numpy==2.4.6; CPU, Python 3.11.
# Expected: 3.0 / t equals the elementwise quotient of two tensors, and NumPy's, which round once.
# Seen: torch.Tensor takes the reciprocal of t and multiplies by the number; in fp32 about a quarter of the results differ
#   in the last bit. `torch.nn.utils.clip_grad_norm_` finds its factor this way: clipping by a true quotient differs.
# Output:
#   of 100000 quotients 26124 differ from tensor / tensor, 0 of those from numpy's; reciprocal times number: 0 differ
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
assert version("numpy") == "2.4.6"
import numpy, torch

norms = 0.5 + torch.rand(100_000, generator=torch.Generator().manual_seed(0))
number_over = 3.0 / norms
tensor_over = torch.full_like(norms, 3.0) / norms
by_numpy = torch.from_numpy(numpy.float32(3.0) / norms.numpy())
twice = int((number_over != tensor_over).sum())
once = int((tensor_over != by_numpy).sum())
explained = int((number_over != norms.reciprocal() * 3.0).sum())
print(
    f"of {len(norms)} quotients {twice} differ from tensor / tensor, {once} of those from numpy's; "
    f"reciprocal times number: {explained} differ"
)
assert twice > 10_000 and once == 0 and explained == 0
PYTHON
"$FINDINGS_VENV/bin/python" probe.py

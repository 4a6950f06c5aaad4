#!/usr/bin/env bash
# An environment variable wins over the argument that the code gives to Accelerator.
#
# Versions: torch==2.13.0 deepspeed==0.19.8 accelerate==1.15.0 transformers==5.24.0; CPU, Python 3.11.
# Expected: The explicit argument: accumulation over 4 micro-batches.
# Seen: 8, from ACCELERATE_GRADIENT_ACCUMULATION_STEPS, which `accelerate launch` sets from a configuration
#   file of the user's; nothing is said.
# Output:
#   asked for 4, got 8
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
import os

os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "8"
from accelerate import Accelerator

steps = Accelerator(cpu=True, gradient_accumulation_steps=4).gradient_accumulation_steps
print("asked for 4, got", steps)
assert steps == 8
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

#!/usr/bin/env bash
# DeepSpeed's warm-up schedules spend their first two steps at rate 0.
#
# Versions: torch==2.13.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: A warm-up over 10 steps from 0 whose second step has a rate above 0, as a line from 0 to 1 in 10
#   steps would.
# Seen: Steps 0 and 1 both have rate 0, in the logarithmic and in the linear form: the first two batches of
#   a run teach nothing.
# Output:
#   log [0.0, 0.0, 0.301, 0.477, 0.602, 0.699, 0.778, 0.845, 0.903, 0.954, 1.0, 1.0]
#   linear [0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
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
import torch
from deepspeed.runtime.lr_schedules import WarmupLR

for form in ("log", "linear"):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupLR(optimizer, 0.0, 1.0, 10, form)
    rates = []
    for _ in range(12):
        rates.append(round(optimizer.param_groups[0]["lr"], 3))
        optimizer.step()
        schedule.step()
    print(form, rates)
    assert rates[:2] == [0.0, 0.0] and rates[2] > 0
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

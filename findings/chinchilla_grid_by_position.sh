#!/usr/bin/env bash
# chinchilla takes the columns of its grid by position, whatever their keys say.
#
# Versions: chinchilla==0.2.0; CPU, Python 3.11.
# Expected: The keys of `param_grid`, which are checked, say which parameter a list of starts is for: runs that lie exactly on a
#   law give that law in any order of the mapping.
# Seen: With E, A, B, alpha, beta in this order 1.945 at N = 7e10 and D = 1.4e12, as the law says. The same grid with the
#   exponents first: exponents of 5 and 1, and 3.63. Nothing is said.
# Output:
#   E, A, B, alpha, beta: [1.7, 399.963, 410.01, 0.34, 0.28] predicts 1.9450, the law says 1.9451
#   exponents first:      [3.628, 1.221, 1096.766, 5.0, 0.999] predicts 3.6282
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet chinchilla==0.2.0
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("chinchilla").partition("+")[0] == "0.2.0"
import tempfile

import numpy as np
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber

GRID = {"e": [0.0, 1.0], "a": [5.0, 7.0], "b": [5.0, 7.0], "alpha": [0.2, 0.5], "beta": [0.2, 0.5]}


def law(n, d):
    return 1.7 + 400.0 / n**0.34 + 410.0 / d**0.28


def fitted(keys):
    grid = {key: GRID[key] for key in keys}
    with tempfile.TemporaryDirectory() as folder:
        study = Chinchilla(project_dir=folder, param_grid=grid, loss_fn=log_huber, log_level=50)
        for n in np.geomspace(1e7, 1e9, 5):
            for ratio in (5, 20, 80):
                study.append(N=n, D=n * ratio, loss=law(n, n * ratio))
        study.fit(parallel=False)
        found = [float(getattr(study, name)) for name in ("E", "A", "B", "alpha", "beta")]
        return found, float(study.predict_loss(7e10, 1.4e12))


told = law(7e10, 1.4e12)
values, first = fitted(("e", "a", "b", "alpha", "beta"))
print("E, A, B, alpha, beta:", [round(value, 3) for value in values], f"predicts {first:.4f}, the law says {told:.4f}")
values, second = fitted(("alpha", "beta", "a", "b", "e"))
print("exponents first:     ", [round(value, 3) for value in values], f"predicts {second:.4f}")
assert abs(first / told - 1) < 1e-3 and second / told > 1.5
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

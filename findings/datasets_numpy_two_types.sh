#!/usr/bin/env bash
# datasets in NumPy format gives one float64 column in two types, by how it is asked for.
#
# Versions: datasets==5.2.0; CPU, Python 3.11.
# Expected: float64, the type that the features state, for a column and for a row.
# Seen: A column comes as float32 (0.1 is 0.10000000149), a single row as float64.
# Output:
#   Value('float64') float32 0.10000000149011612 float64 0.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet datasets==5.2.0
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("datasets").partition("+")[0] == "5.2.0"
import datasets

data = datasets.Dataset.from_dict({"loss": [0.1, 0.2]}).with_format("numpy")
column, row = data[:]["loss"], data[0]["loss"]
print(data.features["loss"], column.dtype, float(column[0]), row.dtype, float(row))
assert (data.features["loss"].dtype, str(column.dtype), str(row.dtype)) == ("float64", "float32", "float64")
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

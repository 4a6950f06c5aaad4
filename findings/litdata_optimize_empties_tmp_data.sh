#!/usr/bin/env bash
# litdata's `optimize` deletes the folders `data` and `chunks` of the temporary folder, whosever they are.
#
# Versions: torch==2.13.0 litdata==0.2.76; CPU, Python 3.11.
# Expected: `optimize(..., output_dir=OUT)` writes OUT, and touches nothing that it did not make.
# Seen: On its first call on a machine it removes $TMPDIR/data and $TMPDIR/chunks (/tmp/data and /tmp/chunks without
#   TMPDIR) with all that is in them, and says nothing.
# Output:
#   output True mine/data True -> False mine/chunks True -> False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet torch==2.13.0 litdata==0.2.76 numpy==2.4.6
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version
assert version("torch").partition("+")[0] == "2.13.0"
assert version("litdata").partition("+")[0] == "0.2.76"
from pathlib import Path
import tempfile
from litdata import optimize
def document(number):
    return {"number": number}
if __name__ == "__main__":
    mine = Path.cwd() / "mine"
    kept = [mine / name / "thesis.txt" for name in ("data", "chunks")]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.write_text("years of work")
    tempfile.tempdir = str(mine)  # as TMPDIR would, or /tmp
    before = [path.exists() for path in kept]
    optimize(document, list(range(4)), str(Path.cwd() / "out"), chunk_bytes="1KB", num_workers=1)
    after = [path.exists() for path in kept]
    print("RESULT output", (Path.cwd() / "out" / "index.json").exists(), "mine/data", before[0], "->", after[0],
          "mine/chunks", before[1], "->", after[1])
    assert before == [True, True] and after == [False, False]
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

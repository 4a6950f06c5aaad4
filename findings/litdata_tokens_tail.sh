#!/usr/bin/env bash
# litdata's token loader reads no block across chunks: the tail of every chunk is never served.
#
# Versions: torch==2.13.0 litdata==0.2.76; CPU, Python 3.11.
# Expected: 500 tokens in blocks of 15 over the stream: 33 blocks, 5 tokens left at the end.
# Seen: With chunks of 50 tokens the last 5 of each are dropped: 450 tokens come, 10% are never seen, and
#   writer and reader say nothing.
# Output:
#   stored 500, served 450 first missing [45, 46, 47, 48, 49]
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
import tempfile
import torch
from litdata import StreamingDataset, TokensLoader, optimize
def document(number):
    yield torch.arange(number * 25, (number + 1) * 25)
if __name__ == "__main__":
    folder = tempfile.mkdtemp(dir=".")
    optimize(document, list(range(20)), folder, chunk_size=64, item_loader=TokensLoader(block_size=15), num_workers=1)
    served = [token for block in StreamingDataset(folder, item_loader=TokensLoader(block_size=15)) for token in block.tolist()]
    missing = sorted(set(range(500)) - set(served))
    print("RESULT stored 500, served", len(served), "first missing", missing[:5])
    assert len(served) == 450 and missing[:5] == [45, 46, 47, 48, 49]
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

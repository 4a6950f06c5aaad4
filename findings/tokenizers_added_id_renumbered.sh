#!/usr/bin/env bash
# A tokenizer.json whose added token leaves a gap, or takes a used id, is renumbered on loading.
#
# Versions: tokenizers==0.23.3; CPU, Python 3.11.
# Expected: The id that the file states, or an error that it cannot be.
# Seen: An added token with id 5 over a vocabulary of 3 gets id 3; one with id 1, which is taken, gets 3
#   too. A model trained with the file's ids is fed others.
# Output:
#   stated 5 loaded 3 encoded [1, 3]
#   stated 1 loaded 3 encoded [1, 3]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet tokenizers==0.23.3
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("tokenizers").partition("+")[0] == "0.23.3"
import json
from tokenizers import Tokenizer

for stated in (5, 1):
    added = {
        "id": stated,
        "content": "<end>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "a"},
    }
    tokenizer = Tokenizer.from_str(json.dumps(file))
    print("stated", stated, "loaded", tokenizer.token_to_id("<end>"), "encoded", tokenizer.encode("b <end>").ids)
    assert tokenizer.encode("b <end>").ids == [1, 3]
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

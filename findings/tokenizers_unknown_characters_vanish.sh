#!/usr/bin/env bash
# A BPE tokenizer without an unknown token leaves out characters that it does not know.
#
# Versions: tokenizers==0.23.3; CPU, Python 3.11.
# Expected: An error, as WordLevel raises where it has no unknown token, or an id that stands for the character.
# Seen: No id at all: a text in another script is an empty row, and words lose their accented letters. WordLevel raises.
# Output:
#   trained on 'naive loss' encoded 'naïve loss': ['n', 'a', 've', 'loss']
#   encoded '日本語': []
#   WordLevel: WordLevel error: Missing [UNK] token from the vocabulary
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
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.train_from_iterator(["naive loss"] * 9, trainers.BpeTrainer(vocab_size=30, show_progress=False))
found = tokenizer.encode("naïve loss").tokens
print("trained on 'naive loss' encoded 'naïve loss':", found)
print("encoded '日本語':", tokenizer.encode("日本語").tokens)
assert "".join(found) == "naveloss" and not tokenizer.encode("日本語").ids
words = Tokenizer(models.WordLevel({"loss": 0}))
words.pre_tokenizer = pre_tokenizers.Whitespace()
try:
    words.encode("日本語")
except Exception as error:
    print("WordLevel:", error)
else:
    raise SystemExit("no error")
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

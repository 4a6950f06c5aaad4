#!/usr/bin/env bash
# A transformers model runs on meta tensors with its cache, and raises without.
#
# Versions: torch==2.13.0 transformers==5.24.0; CPU, Python 3.11.
# Expected: use_cache=False, what one writes to measure a training step, is the simpler path and runs as
#   well.
# Seen: RuntimeError: Tensor.item() cannot be called on meta tensors, from the making of the mask; with the
#   cache the forward pass runs.
# Output:
#   with the cache: (1, 8, 64)
#   without: Tensor.item() cannot be called on meta tensors
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version
assert version("torch").partition("+")[0] == "2.13.0"
assert version("transformers").partition("+")[0] == "5.24.0"
import torch
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
with torch.device("meta"):
    model = LlamaForCausalLM(config)
tokens = torch.zeros(1, 8, dtype=torch.long, device="meta")
print("with the cache:", tuple(model(tokens).logits.shape))
try:
    model(tokens, use_cache=False)
except RuntimeError as error:
    print("without:", str(error).splitlines()[0])
    assert "item()" in str(error)
else:
    raise SystemExit("it runs without the cache now")
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

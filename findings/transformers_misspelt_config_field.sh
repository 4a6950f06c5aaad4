#!/usr/bin/env bash
# A misspelt field of a model's configuration is kept, saved and never used.
#
# Versions: transformers==5.24.0, torch==2.13.0; CPU, Python 3.11.
# Expected: An error, or a warning, as of a misspelt argument of a constructor.
# Seen: num_experts_per_token (the field is num_experts_per_tok) is an attribute of the configuration and stands in its
#   JSON; the model sends each token to two experts, the default. Nothing is printed at the default verbosity.
# Output:
#   asked for 4, the file says 4, the model takes 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet transformers==5.24.0 torch==2.13.0
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("transformers") == "5.24.0"
assert version("torch").partition("+")[0] == "2.13.0"
import contextlib
import io
import warnings

with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()) as printed:
    from transformers import MixtralConfig, MixtralForCausalLM

    warnings.simplefilter("error")
    printed.truncate(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_experts_per_token=4,
    )
    model = MixtralForCausalLM(config)
    said = printed.getvalue()
taken = model.model.layers[0].mlp.gate.top_k
print(f"asked for 4, the file says {config.to_dict()['num_experts_per_token']}, the model takes {taken}")
assert taken == 2 and not said.strip("\0"), said
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

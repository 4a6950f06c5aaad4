#!/usr/bin/env bash
# FlopCounterMode counts the experts of a mixture in transformers 5 as 0.
#
# Versions: torch==2.13.0 deepspeed==0.19.8 accelerate==1.15.0 transformers==5.24.0; CPU, Python 3.11.
# Expected: A Mixtral layer of 4 experts, 2 a token: the experts' three products of 2 x 32 tokens, 1,572,864
#   FLOPs, in the count.
# Seen: The default experts run through grouped_mm, which has no formula: the counter sees the rest only.
# Output:
#   default: grouped_mm counts: {'grouped_mm': 1327104, 'eager': 2899968}
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
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM
make = lambda: MixtralConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
counts = {}
for experts in ("grouped_mm", "eager"):
    model = MixtralForCausalLM._from_config(make(), dtype=torch.bfloat16, experts_implementation=experts)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 32, dtype=torch.long))
    counts[model.config._experts_implementation] = counter.get_total_flops()
default = MixtralForCausalLM(make()).config._experts_implementation
print("default:", default, "counts:", counts)
expected = 3 * 2 * 64 * 64 * 32 * 2
assert default == "grouped_mm" and counts["eager"] - counts["grouped_mm"] == expected, (counts, expected)
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

#!/usr/bin/env bash
# NLLB-MoE runs its first two experts only, however many there are and whichever its router chooses.
#
# Versions: transformers==5.24.0, torch==2.13.0; CPU, Python 3.11.
# Expected: An expert computes, and gets a gradient, where the router sends it a token.
# Seen: The router of 8 experts chooses 6 of them for 128 tokens, the experts with a gradient are 0 and 1. The mask of
#   zeros and ones that the router gives is taken for numbers of experts.
# Output:
#   chosen by the router [0, 3, 4, 5, 6, 7]
#   with a gradient [0, 1]
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
import torch
from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration

torch.manual_seed(0)
config = NllbMoeConfig(
    vocab_size=128, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
    encoder_attention_heads=4, decoder_attention_heads=4, num_experts=8, encoder_sparse_step=2, decoder_sparse_step=2,
    max_position_embeddings=64, moe_token_dropout=0.0,
)
model = NllbMoeForConditionalGeneration(config)
chosen = set()


def note(module, inputs, outputs):
    chosen.update(outputs[0].argmax(-1).tolist())  # the mask of each token's first choice


for name, module in model.named_modules():
    if name == "model.encoder.layers.1.ffn.router":
        module.register_forward_hook(note)
tokens = torch.randint(4, 128, (4, 32))
model(input_ids=tokens, labels=tokens).loss.backward()
parts = (name.split(".") for name, weight in model.named_parameters() if weight.grad is not None and "experts" in name)
trained = {int(part.removeprefix("expert_")) for name in parts for part in name if part.startswith("expert_")}
print("chosen by the router", sorted(chosen))
print("with a gradient", sorted(trained))
assert len(chosen) > 2 and trained == {0, 1}
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

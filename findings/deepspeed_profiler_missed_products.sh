#!/usr/bin/env bash
# DeepSpeed's FLOPs profiler passes by the experts of transformers, and other products of matrices.
#
# Versions: torch==2.13.0 deepspeed==0.19.8 transformers==5.24.0; CPU, Python 3.11.
# Expected: Each spelling of one product of 32 x 64 and 64 x 64 counts 131,072 multiply-accumulates, and a Mixtral its two
#   experts of eight for each token.
# Seen: Right for `@` and `mm`; none for `tensordot`, `inner`, `linalg.matmul` and `grouped_mm`; for `einsum` FLOPs but no
#   MACs. Of the Mixtral all that its experts do is missing, which is most of it; nothing is said.
# Output:
#   @: FLOPs 262144, MACs 131072
#   mm: FLOPs 262144, MACs 131072
#   einsum: FLOPs 262100, MACs 0
#   tensordot: FLOPs 0, MACs 0
#   inner: FLOPs 0, MACs 0
#   linalg.matmul: FLOPs 0, MACs 0
#   grouped_mm: FLOPs 0, MACs 0
#   Mixtral: MACs 1155072; by hand 1155072 without its experts, 4300800 with them
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet torch==2.13.0 deepspeed==0.19.8 transformers==5.24.0 setuptools
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("torch").partition("+")[0] == "2.13.0"
assert version("deepspeed").partition("+")[0] == "0.19.8"
assert version("transformers").partition("+")[0] == "5.24.0"
import os

os.environ["DS_ACCELERATOR"] = "cpu"
import torch
from deepspeed.profiling.flops_profiler import get_model_profile
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

ENDS = torch.tensor([16, 32], dtype=torch.int32)
SPELLINGS = {
    "@": lambda x, w: x @ w,
    "mm": lambda x, w: torch.mm(x, w),
    "einsum": lambda x, w: torch.einsum("td,de->te", x, w),
    "tensordot": lambda x, w: torch.tensordot(x, w, 1),
    "inner": lambda x, w: torch.inner(x, w),
    "linalg.matmul": lambda x, w: torch.linalg.matmul(x, w),
    "grouped_mm": lambda x, w: nn.functional.grouped_mm(x.bfloat16(), torch.stack([w, w]).bfloat16(), offs=ENDS),
}


class Product(nn.Module):
    def __init__(self, spelling):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64))
        self.spelling = spelling

    def forward(self, x):
        return self.spelling(x, self.weight)


def profile(model, x):
    flops, macs, _ = get_model_profile(model, args=[x], print_profile=False, as_string=False, warm_up=0)
    return flops, macs


seen = {name: profile(Product(spelling), torch.randn(32, 64)) for name, spelling in SPELLINGS.items()}
for name, (flops, macs) in seen.items():
    print(f"{name}: FLOPs {flops}, MACs {macs}")
assert seen["@"] == seen["mm"] == (262144, 131072)
assert seen["einsum"][0] > 0 and seen["einsum"][1] == 0
assert all(seen[name] == (0, 0) for name in ("tensordot", "inner", "linalg.matmul", "grouped_mm"))

width, inner, layers, tokens = 64, 128, 2, 32
model = MixtralForCausalLM(
    MixtralConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        num_local_experts=8,
        num_experts_per_tok=2,
        bos_token_id=1,
        eos_token_id=2,
    )
)
_, macs = profile(model, torch.randint(0, 100, (2, 16)))
experts = layers * tokens * 2 * 3 * width * inner
rest = layers * (tokens * (3 * width * width + width * 8) + 2 * 2 * 16 * 16 * width) + tokens * width * 100
print(f"Mixtral: MACs {macs}; by hand {rest} without its experts, {rest + experts} with them")
assert abs(macs - rest) < 0.02 * rest and experts > 2 * rest
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

#!/usr/bin/env bash
# DeepSpeed's Muon tells embeddings by their names: GPT-2's are trained by Muon.
#
# Versions: torch==2.13.0 deepspeed==0.19.8 accelerate==1.15.0 transformers==5.24.0; CPU, Python 3.11.
# Expected: Token and position embeddings by Adam, hidden matrices by Muon, in GPT-2 as in Llama.
# Seen: Parameters are told by 'embed' or 'lm_head' in the name. Llama's embed_tokens goes to Adam; GPT-2's
#   wte (its tied output head too) and wpe go to Muon.
# Output:
#   {'transformer.wte.weight': True, 'transformer.wpe.weight': True, 'model.embed_tokens.weight': False}
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
import os, socket

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(
    RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu"
)
import deepspeed, torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # spares compiling an extension

from types import SimpleNamespace
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32))
llama = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
)
flags = {}
for model in (gpt2, llama):
    deepspeed.set_optimizer_flags(SimpleNamespace(optimizer_name="muon", optimizer_params={}), model)
    flags |= {
        name: parameter.use_muon
        for name, parameter in model.named_parameters()
        if parameter.shape[0] in (32, 64) and ("wte" in name or "wpe" in name or "embed" in name)
    }
print(flags)
assert flags == {"transformer.wte.weight": True, "transformer.wpe.weight": True, "model.embed_tokens.weight": False}
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

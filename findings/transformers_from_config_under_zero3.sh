#!/usr/bin/env bash
# from_config builds other weights of the same seed once ZeRO-3 is configured, though zero3_init_flag is False.
#
# Versions: torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 deepspeed==0.19.8; CPU, Python 3.11.
# Expected: A seed gives a configuration the same weights at every ZeRO stage, and DeepSpeedPlugin's
#   zero3_init_flag=False ("whether to enable deepspeed.zero.Init") leaves models unpartitioned.
# Seen: from_config builds under deepspeed.zero.Init all the same and draws the weights in another order; the class
#   called by itself gives the weights of before.
# Output:
#   zero3_init_flag False
#   before, from_config: partitioned False, weights as before True
#   after, from_config: partitioned True, weights as before False
#   after, the class: partitioned False, weights as before True
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
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
import deepspeed, torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # spares compiling an extension
from accelerate import Accelerator, DeepSpeedPlugin
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)


def built(build):
    torch.manual_seed(0)
    model = build(config)
    parameters = list(model.parameters())
    partitioned = any(hasattr(parameter, "ds_id") for parameter in parameters)
    with deepspeed.zero.GatheredParameters(parameters, enabled=partitioned):
        return partitioned, torch.cat([parameter.detach().flatten() for parameter in parameters])


def show(name, build):
    partitioned, weights = built(build)
    same = torch.equal(weights, before)
    print(f"{name}: partitioned {partitioned}, weights as before {same}")
    return partitioned, same


before = built(LlamaForCausalLM)[1]
first = show("before, from_config", AutoModelForCausalLM.from_config)
zero3 = {"train_batch_size": 1, "zero_optimization": {"stage": 3}}
accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=zero3, zero3_init_flag=False))
print("zero3_init_flag", accelerator.deepspeed_plugin.zero3_init_flag)
deepspeed.init_distributed(auto_mpi_discovery=False)
after = show("after, from_config", AutoModelForCausalLM.from_config)
by_class = show("after, the class", LlamaForCausalLM)
assert (first, after, by_class) == ((False, True), (True, False), (False, True))
PYTHON
DS_ACCELERATOR=cpu "$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }

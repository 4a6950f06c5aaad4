"""A model of transformers that its class builds by `from_config`, as people write it."""

from __future__ import annotations

import transformers as hf
from torch import nn

from helpers.study.foreign_models import FOREIGN, FromLibrary, decoder_flops, of_tokens, shape

NAME = "Llama by from_config"


class ByFromConfig(FromLibrary):
    def build(self, width: int) -> nn.Module:
        return hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**shape(width)))


FOREIGN[NAME] = of_tokens(ByFromConfig, decoder_flops)

"""Models of transformers are built at ZeRO-3 as at every other stage.

Where ZeRO-3 is configured, which Accelerate tells transformers, `from_config` builds partitioned modules and
draws their weights in another order (`findings/transformers_from_config_under_zero3.sh`): a class that calls it would
train to another loss at ZeRO-3, under the same identity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from accelerate import Accelerator
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config


@contextlib.contextmanager
def built_as_at_every_stage(accelerator: Accelerator) -> Iterator[None]:
    """Let transformers know nothing of ZeRO-3 for as long as a model is built; afterwards it knows it again."""
    plugin = accelerator.deepspeed_plugin
    assert plugin is not None
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(plugin.dschf)

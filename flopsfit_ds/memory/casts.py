"""Whether copies of weights in bf16 stay from one micro-batch of a step to the next, which takes memory for time."""

from __future__ import annotations


def keeps_casts(zero_stage: int, accumulation: int, activation_checkpointing: bool) -> bool:
    """Whether the built-in decoder casts its weights once an optimiser step, where it trains in bf16.

    Without checkpointing all copies are there at the end of a forward pass anyway, beside the activations of all
    blocks, so that keeping them adds little or nothing to the peak. With checkpointing one block's copies are there at
    a time, and it was chosen because memory is short; ZeRO-3 has no whole weights to copy.

    Args:
        zero_stage: Of the layout.
        accumulation: Micro-batches of a step.
        activation_checkpointing: Whether blocks are recomputed.
    """
    return zero_stage < 3 and accumulation > 1 and not activation_checkpointing

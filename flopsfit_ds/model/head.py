"""The output head, the widest layer of a language model: how many of its logits are held at once."""

from __future__ import annotations

LOGITS_AT_ONCE = 2**26
"""Logits that are held at once: half a GiB with their softmax in fp32, and products that still fill a GPU.

At a vocabulary of 128 k that is 512 tokens, at 50 k 1,335. A product with 512 rows does 512 FLOPs for each byte that it
reads of the head's bf16 weight; an H100 (990 TFLOP/s, 3.35 TB/s) is bound by arithmetic from 296 on.
"""
CHUNK_BYTES = 8 * LOGITS_AT_ONCE
"""Most that a chunk holds: its logits and their softmax, in fp32; their gradients take the place of both."""


def fits_at_once(num_tokens: int, vocab_size: int) -> bool:
    """Whether the logits of so many tokens are few enough to be held at once."""
    return num_tokens * vocab_size <= LOGITS_AT_ONCE

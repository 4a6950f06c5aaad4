"""Training FLOPs, counted exactly, with the 6N convention beside them.

Convention, stated once: a multiplication and an addition are two FLOPs; the backward pass costs what it
multiplies, twice the forward pass where everything is trained; no gradients of frozen weights or of the input are.
Attention counts for each query the keys that the query sees that sees most: the full context without halving for the
causal mask, as in PaLM (Chowdhery et al., 2022, appendix B), the window of a sliding one, and the part of a document
that a sequence holds where attention stays within documents, a mean over all that is trained on. A sum over a product
of tensors that are spread against each other, as in the scans of state-space models, counts as the matrix product that
it is. The embedding look-up, norms, activations and whatever else works element by element are not counted, nor is
recomputation under activation checkpointing (these are model FLOPs, not hardware FLOPs).
"""

from __future__ import annotations

from typing import Literal

from flopsfit_ds.model.architecture import ModelShape

Keys = tuple[tuple[int, float], ...]
"""Of each window, how many tokens a query may see where attention stays within documents."""

FlopsSource = Literal["counted", "6nd"]
"""Where FLOPs come from: the operations, or 6 N D where a user accepted it."""

FLOPS_PER_PARAMETER_TOKEN = 6
"""C = 6 N D: Kaplan et al. (2020, section 2.1)."""


def forward_flops_per_token(shape: ModelShape, keys: Keys = ()) -> float:
    """FLOPs of the forward pass for one token: matrices, attention over context or window, and the output head."""
    counts = shape.parameters
    matrices = 2 * (counts.attention + counts.mlp + shape.vocab_size * shape.hidden_size)
    within = dict(keys)
    attention = sum(within.get(window, window) for window in shape.windows) * 4 * shape.hidden_size
    return matrices + attention


def training_flops_per_token(shape: ModelShape, num_frozen_matrix_params: int = 0, keys: Keys = ()) -> float:
    """FLOPs of forward and backward pass for one token; frozen matrices need no weight gradients.

    Args:
        shape: The decoder's.
        num_frozen_matrix_params: Parameters of matrices that are not trained.
        keys: What a query may see where attention stays within documents.
    """
    return 3 * forward_flops_per_token(shape, keys) - 2 * num_frozen_matrix_params


def conventional_flops(num_params: float, num_tokens: float) -> float:
    """C = 6 N D."""
    return FLOPS_PER_PARAMETER_TOKEN * num_params * num_tokens


def model_flops_utilisation(flops: float, seconds: float, world_size: int, peak_flops: float) -> float:
    """Model FLOPs over what all devices could have done in the same time (PaLM; Chowdhery et al., 2022, appendix B).

    Args:
        flops: Of all devices together.
        seconds: In which they were done.
        world_size: Devices.
        peak_flops: FLOP/s of one device.
    """
    return flops / (seconds * world_size * peak_flops)

"""Training FLOPs, counted exactly, with the 6N convention beside them.

Convention, stated once: a multiplication and an addition are two FLOPs; the backward pass costs twice the forward pass;
attention is counted over the full context, without halving for the causal mask, as in PaLM (Chowdhery et al., 2022,
appendix B) and as `torch.utils.flop_counter` counts; the embedding look-up, norms and activations are not counted;
recomputation under activation checkpointing is not counted (these are model FLOPs, not hardware FLOPs).
"""

from __future__ import annotations

from flopsfit_ds.model.architecture import ModelShape

FLOPS_PER_PARAMETER_TOKEN = 6
"""C = 6 N D: Kaplan et al. (2020, section 2.1)."""


def forward_flops_per_token(shape: ModelShape) -> int:
    """FLOPs of the forward pass for one token: matrices, attention over the whole context, and the output head."""
    counts = shape.parameters
    matrices = 2 * (counts.attention + counts.mlp + shape.vocab_size * shape.hidden_size)
    attention = shape.num_layers * 4 * shape.context_length * shape.hidden_size
    return matrices + attention


def training_flops_per_token(shape: ModelShape, num_frozen_matrix_params: int = 0) -> int:
    """FLOPs of forward and backward pass for one token; frozen matrices need no weight gradients."""
    return 3 * forward_flops_per_token(shape) - 2 * num_frozen_matrix_params


def conventional_flops(num_params: float, num_tokens: float) -> float:
    """C = 6 N D."""
    return FLOPS_PER_PARAMETER_TOKEN * num_params * num_tokens

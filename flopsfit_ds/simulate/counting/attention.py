"""Attention as a fused kernel would run it: what it multiplies and what it keeps, whatever kernels this machine has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional


class _Fused(torch.autograd.Function):
    """Keeps what fused attention keeps: its inputs, its output and the log-sum-exp of each row."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, extra: int, count: Any) -> Any:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        row_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        rest = query.new_empty(extra)
        ctx.save_for_backward(query, key, value, out, row_sums, rest)
        ctx.count = count
        count(False)
        return out

    @staticmethod
    def backward(ctx: Any, *_grads: Any) -> Any:
        ctx.count(True)
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None, None


@contextlib.contextmanager
def fused_attention(seen_by: Callable[..., Callable[[bool], None]]) -> Iterator[None]:
    """Let `scaled_dot_product_attention` be one operation that computes nothing.

    In fp32 no fused kernel takes grouped queries: scaled queries, expanded keys and values, and the softmax are kept.

    Args:
        seen_by: `seen_by(query, key, value, mask)` gives what is called in the forward and (True) backward pass.
    """
    original = functional.scaled_dot_product_attention

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        del dropout_p, is_causal, scale
        _check_heads(query, key, enable_gqa)
        extra = 0
        if enable_gqa and query.dtype == torch.float32 and query.shape[-3] != key.shape[-3]:
            extra = 3 * query.numel() + query.numel() // query.shape[-1] * key.shape[-2]
        count = seen_by(query, key, value, attn_mask)
        if attn_mask is not None and attn_mask.requires_grad:  # a learned bias: its gradient is a sum, no product
            return _with_gradient_of(attn_mask, _Fused.apply(query, key, value, extra, count))
        return _Fused.apply(query, key, value, extra, count)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _check_heads(query: torch.Tensor, key: torch.Tensor, grouped: bool) -> None:
    """Refuse what the real operation refuses.

    Raises:
        RuntimeError: Heads of queries and of keys do not go together.
    """
    try:
        torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    except RuntimeError:
        if not grouped or query.shape[-3] % key.shape[-3]:
            raise RuntimeError(
                f"attention of {query.shape[-3]} heads of queries and {key.shape[-3]} of keys: the former must be a "
                "multiple of the latter"
            ) from None


def _with_gradient_of(mask: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return out + 0 * mask.sum()

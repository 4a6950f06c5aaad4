"""What CUDA's kernels keep and allocate, for the operators whose composite form would show something else.

Registered below autocast for the simulated device; a function for autograd each, whose bodies only allocate. Sources:
PyTorch's `aten/src/ATen/native/transformers/cuda` for attention (`sdp_utils.cpp` decides which kernel runs, the flash
backward pass accumulates dq in fp32), `layer_norm_kernel.cu` for the fused RMSNorm, `Dropout.cu`.
"""

from __future__ import annotations

from typing import Any

import torch

_library: torch.library.Library | None = None
_KEY = "AutogradPrivateUse1"
_MAX_FLASH_HEAD_DIM = 256  # `check_head_dim_size_flash`, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp


def register_kernels() -> None:
    """Route attention, RMSNorm and dropout of the simulated device to these; once a process."""
    global _library
    _library = torch.library.Library("aten", "IMPL")
    _library.impl("scaled_dot_product_attention", _attention, _KEY)
    _library.impl("rms_norm", _rms_norm, _KEY)
    _library.impl("dropout", _dropout, _KEY)
    for name in ("silu_backward", "mish_backward"):
        _library.impl(name, _one_kernel, _KEY)


def _one_kernel(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One kernel on CUDA, several operations elsewhere."""
    return torch.empty_like(x)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    grouped = query.shape[-3] != key.shape[-3]
    narrow = query.dtype in (torch.bfloat16, torch.float16)
    if attn_mask is None and narrow and query.dim() == 4 and query.shape[-1] <= _MAX_FLASH_HEAD_DIM:
        return _Flash.apply(query, key, value)
    if query.dim() == 4 and not grouped:
        return _MemoryEfficient.apply(query, key, value, attn_mask)
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


def _heads_last(like: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[batch, heads, tokens, head_dim], laid out as [batch, tokens, heads, head_dim]."""
    batch, heads, tokens, _ = like.shape
    return like.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)


class _Flash(torch.autograd.Function):
    """FlashAttention 2: saves its inputs, its output and the log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = _heads_last(query, value.shape[-1])
        log_sum_exp = query.new_empty(query.shape[:3], dtype=torch.float32)
        seed = query.new_empty(2, dtype=torch.int64)
        ctx.save_for_backward(query, key, value, out, log_sum_exp, seed)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        batch, heads, tokens, head_dim = query.shape
        rows = _round_up(tokens, 128)
        d_query, d_key, d_value = (_heads_last(t, t.shape[-1]) for t in (query, key, value))
        delta = query.new_empty(batch, heads, rows, dtype=torch.float32)
        accumulator = query.new_empty(batch, heads, rows, _round_up(head_dim, 32), dtype=torch.float32)
        if key.shape[1] != heads:
            # grouped queries: gradients of every query head, then a sum over each group
            expanded = [t.new_empty(batch, heads, t.shape[2], t.shape[3]) for t in (key, value)]
            del expanded
        del delta, accumulator
        return d_query, d_key, d_value


class _MemoryEfficient(torch.autograd.Function):
    """The memory-efficient kernel, which takes fp32 and masks: saves its inputs, its output and the log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        out = _heads_last(query, value.shape[-1])
        batch, heads, tokens, _ = query.shape
        log_sum_exp = query.new_empty(batch, heads, _round_up(tokens, 32), dtype=torch.float32)
        seed = query.new_empty(2, dtype=torch.int64)
        if mask is not None and mask.dtype == torch.bool:
            mask = mask.new_empty(mask.shape, dtype=query.dtype)
        ctx.save_for_backward(query, key, value, out, log_sum_exp, seed, mask)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        d_query, d_key, d_value = (_heads_last(t, t.shape[-1]) for t in (query, key, value))
        delta = query.new_empty(query.shape[:3], dtype=torch.float32)
        del delta
        return d_query, d_key, d_value, None


def _rms_norm(
    input: torch.Tensor, normalized_shape: list[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    return _FusedRMSNorm.apply(input, weight, len(normalized_shape))


class _FusedRMSNorm(torch.autograd.Function):
    """Saves its input, its weight and one reciprocal root an input row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, num_dims: int) -> torch.Tensor:
        root = x.new_empty((*x.shape[: x.dim() - num_dims], *(1,) * num_dims), dtype=torch.float32)
        ctx.save_for_backward(x, weight, root)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight), None


def _dropout(input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    return torch.ops.aten.native_dropout(input, p, True)[0] if train and 0 < p < 1 else input.clone() if p else input

"""FLOPs of single operations, by the convention of `flopsfit_ds.model.flops`, and the tensors that they multiply.

Matrix products, convolutions, grouped products (experts) and fused attention. A sum over a product of tensors that were
spread against each other is the product that `einsum` would make of it, and counts as that; other operations on single
elements are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_aten = torch.ops.aten
_NEVER = -1e8
"""An additive mask of this or less forbids a key; less steep ones are biases by distance."""


@dataclass(frozen=True)
class Product:
    """What an operation multiplies.

    Attributes:
        flops: Two for a multiplication with its addition.
        factors: The tensors multiplied.
        grouped: Whether rows find their matrix by an index, as in a mixture of experts.
    """

    flops: int
    factors: tuple[torch.Tensor, ...] = ()
    grouped: bool = False


def product_of(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Product | None:
    """What an operation of aten multiplies; None where it multiplies no matrices."""
    count = _COUNTS.get(id(operation))
    if count is not None:
        return count(args, kwargs)
    if operation.namespace == "transformers":  # registered when transformers is imported
        return _library_product(operation, args)
    return None


def attention_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keys_seen: int) -> tuple[int, int]:
    """FLOPs of the scores and of the mix of values, where each query sees so many keys."""
    rows = math.prod(query.shape[:-1])
    return 2 * rows * keys_seen * query.shape[-1], 2 * rows * keys_seen * value.shape[-1]


def keys_seen(mask: torch.Tensor) -> int:
    """Keys seen by the query that sees most: the window of a sliding mask, the whole context of a causal one."""
    seen = mask if mask.dtype == torch.bool else mask > max(_NEVER, torch.finfo(mask.dtype).min / 2)
    return int(seen.sum(-1).max()) if seen.numel() else 0


def _mm(args: Sequence[Any], _: Any) -> Product:
    left, right = args[0], args[1]
    return Product(2 * left.shape[0] * left.shape[1] * right.shape[1], (left, right))


def _bmm(args: Sequence[Any], _: Any) -> Product:
    left, right = args[0], args[1]
    return Product(2 * left.shape[0] * left.shape[1] * left.shape[2] * right.shape[2], (left, right))


def _mv(args: Sequence[Any], _: Any) -> Product:
    return Product(2 * args[0].numel(), (args[0], args[1]))


def _after_bias(count: Callable[..., Product]) -> Callable[..., Product]:
    return lambda args, kwargs: count(args[1:], kwargs)


def _convolution_flops(x: torch.Tensor, weight: torch.Tensor, out_shape: Sequence[int], transposed: bool) -> int:
    """Every weight meets every position of the output, or of the input where the convolution is transposed."""
    positions = x.shape[2:] if transposed else out_shape[2:]
    return 2 * x.shape[0] * math.prod(positions) * weight.numel()


def _convolution(args: Sequence[Any], _: Any) -> Product:
    x, weight, _bias, stride, padding, dilation, transposed = args[:7]
    spatial = [
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, gap in zip(
            x.shape[2:], weight.shape[2:], _each(stride, x), _each(padding, x), _each(dilation, x), strict=True
        )
    ]
    return Product(_convolution_flops(x, weight, (0, 0, *spatial), transposed), (x, weight))


def _each(values: Sequence[int], x: torch.Tensor) -> Sequence[int]:
    return values if len(values) == x.ndim - 2 else [values[0]] * (x.ndim - 2)


def _convolution_backward(args: Sequence[Any], kwargs: dict[str, Any]) -> Product:
    grad, x, weight, transposed = args[0], args[1], args[2], args[7]
    wanted = args[10] if len(args) > 10 else kwargs["output_mask"]
    return Product((wanted[0] + wanted[1]) * _convolution_flops(x, weight, grad.shape, transposed))


def _grouped_mm(args: Sequence[Any], _: Any) -> Product:
    left, right = args[0], args[1]
    if left.ndim == 3 and right.ndim == 3:
        return _bmm(args, _)
    return Product(2 * left.numel() * right.shape[-1], (left, right), grouped=True)


def _library_product(operation: Any, args: Sequence[Any]) -> Product | None:
    name = operation._schema.name
    if name == "transformers::grouped_mm_fallback":
        return _grouped_mm(args, {})
    if name == "transformers::grouped_mm_fallback_backward":
        return Product(2 * _grouped_mm(args, {}).flops)
    return None


def _flash(args: Sequence[Any], kwargs: dict[str, Any]) -> Product:
    """The fused kernel of a CPU; those of a GPU stand behind `scaled_dot_product_attention`."""
    return Product(sum(attention_flops(args[0], args[1], args[2], args[1].shape[-2])))


def _flash_backward(args: Sequence[Any], _: Any) -> Product:
    return Product(2 * sum(attention_flops(args[1], args[2], args[3], args[2].shape[-2])))


_COUNTS: dict[int, Callable[..., Product]] = {
    id(operation): count
    for operation, count in (
        (_aten.mm.default, _mm),
        (_aten.addmm.default, _after_bias(_mm)),
        (_aten.bmm.default, _bmm),
        (_aten.baddbmm.default, _after_bias(_bmm)),
        (_aten.addbmm.default, _after_bias(_bmm)),
        (_aten.mv.default, _mv),
        (_aten.addmv.default, _after_bias(_mv)),
        (_aten.dot.default, _mv),
        (_aten.vdot.default, _mv),
        (_aten.convolution.default, _convolution),
        (_aten.convolution_backward.default, _convolution_backward),
        (_aten._grouped_mm.default, _grouped_mm),
        (_aten._scaled_dot_product_flash_attention_for_cpu.default, _flash),
        (_aten._scaled_dot_product_flash_attention_for_cpu_backward.default, _flash_backward),
    )
}

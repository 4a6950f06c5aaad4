"""CUDA's autocast on the simulated device: PyTorch gives an out-of-tree device none of its own.

The lists are those of `torch/include/ATen/autocast_mode.h` (AT_FORALL_LOWER_PRECISION_FP, AT_FORALL_FP32,
AT_FORALL_FP32_SET_OPT_DTYPE, AT_FORALL_PROMOTE); a test holds them to the operators that PyTorch registers for CUDA.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from flopsfit_ds.simulate.tensors.device import DEVICE_TYPE

_KEY = "AutocastPrivateUse1"
_PROMOTE = frozenset(
    {
        "addcdiv",
        "addcmul",
        "atan2",
        "bilinear",
        "cross",
        "dot",
        "vdot",
        "grid_sampler",
        "index_put",
        "tensordot",
        "scatter_add",
    }
)
_FP32_WITH_DTYPE = frozenset(
    {
        "prod",
        "prod.dim_int",
        "softmax.int",
        "log_softmax.int",
        "cumprod",
        "cumsum",
        "linalg_vector_norm",
        "linalg_matrix_norm",
        "linalg_matrix_norm.str_ord",
        "sum",
        "sum.dim_IntList",
    }
)
# of tensors with named dimensions, which later versions do without
_FP32_WITH_DTYPE_NAMED = frozenset(
    {
        "prod.dim_Dimname",
        "softmax.Dimname",
        "log_softmax.Dimname",
        "cumprod.dimname",
        "cumsum.dimname",
        "sum.dim_DimnameList",
    }
)
_LOWER = frozenset(
    {
        "_convolution",
        "_convolution.deprecated",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_tbc",
        "conv_transpose1d",
        "conv_transpose2d.input",
        "conv_transpose3d.input",
        "convolution",
        "prelu",
        "addmm",
        "addmv",
        "addr",
        "matmul",
        "einsum",
        "mm",
        "mv",
        "linalg_vecdot",
        "linear",
        "addbmm",
        "baddbmm",
        "bmm",
        "chain_matmul",
        "linalg_multi_dot",
        "_thnn_fused_lstm_cell",
        "_thnn_fused_gru_cell",
        "lstm_cell",
        "gru_cell",
        "rnn_tanh_cell",
        "rnn_relu_cell",
        "_scaled_dot_product_flash_attention",
        "scaled_dot_product_attention",
        "cudnn_convolution",
        "cudnn_convolution_transpose",
        "_cudnn_rnn",
    }
)
_REFUSED = ("binary_cross_entropy",)

_cache: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}
_libraries: list[torch.library.Library] = []


def register_autocast() -> None:
    """Give the simulated device CUDA's autocast; once a process."""
    library, rest = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    _libraries.extend((library, rest))  # registrations end with the object
    rest.fallback(torch.library.fallthrough_kernel, _KEY)
    registered = [name.removeprefix("aten::") for name in cuda_operators()]
    for name in registered:
        if name in _REFUSED:
            continue
        if name in _LOWER:
            kernel = _casting(name, _to_lower)
        elif name in _FP32_WITH_DTYPE | _FP32_WITH_DTYPE_NAMED:
            kernel = _with_dtype(name)
        elif name in _PROMOTE:
            kernel = _promoting(name)
        else:
            kernel = _casting(name, _to_fp32)
        library.impl(name, kernel, _KEY)
    forget = torch.clear_autocast_cache

    def clear() -> None:
        _cache.clear()
        forget()

    torch.clear_autocast_cache = clear


def cuda_operators() -> list[str]:
    """Operators for which this PyTorch has a CUDA autocast."""
    return sorted(torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"))


def _operator(name: str) -> Any:
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


def _off() -> Any:
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY)))


def _eligible(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == DEVICE_TYPE
        and value.is_floating_point()
        and value.dtype != torch.float64
    )


def _to_lower(value: Any) -> Any:
    """Cast, and keep the copy of a weight until the region ends (cached_cast of ATen/autocast_mode.cpp)."""
    dtype = torch.get_autocast_dtype(DEVICE_TYPE)
    if not _eligible(value) or value.dtype == dtype:
        return value
    kept = value.dtype == torch.float32 and value.requires_grad and value.is_leaf and not value._is_view()
    if not (kept and torch.is_autocast_cache_enabled()):
        return value.to(dtype)
    found = _cache.get(id(value))
    if found is not None and found[0]() is value:
        return found[1]
    cast = value.to(dtype)
    _cache[id(value)] = (weakref.ref(value), cast)
    return cast


def _to_fp32(value: Any) -> Any:
    return value.float() if _eligible(value) else value


def _casting(name: str, cast: Callable[[Any], Any]) -> Callable[..., Any]:
    operator = _operator(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _off():
            return operator(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


def _with_dtype(name: str) -> Callable[..., Any]:
    operator = _operator(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _off():
            if _eligible(args[0]) and kwargs.get("dtype") is None and not _dtype_given(operator, args):
                kwargs["dtype"] = torch.float32
            return operator(*args, **kwargs)

    return kernel


def _dtype_given(operator: Any, args: Any) -> bool:
    names = [argument.name for argument in operator._schema.arguments if not argument.kwarg_only]
    return "dtype" in names[: len(args)] and args[names.index("dtype")] is not None


def _promoting(name: str) -> Callable[..., Any]:
    operator = _operator(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _off():
            dtypes = {t.dtype for t in tree_leaves((args, kwargs)) if _eligible(t)}
            if torch.float32 in dtypes and len(dtypes) > 1:
                args, kwargs = tree_map(_to_fp32, args), tree_map(_to_fp32, kwargs)
            return operator(*args, **kwargs)

    return kernel

"""Fake tensors, quickly: what `FakeTensorMode` answers, from a cache with a key of a few microseconds.

PyTorch's own cache of fake operations spends about a tenth of a millisecond on each key and each result, which made up
most of a simulation. Here a view is made by its C++ kernel, without any cache, and every other operation that always
gives the same result for the same shapes is remembered by the shapes, strides, types and devices of its arguments.
What this does not know goes to `FakeTensorMode`, and so does every operation the first time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._library.utils import is_builtin
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_iter

_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
# by identity: an operator's own hash is computed in Python
_VIEWS = frozenset(
    id(view)
    for view in (
        _aten.view.default,
        _aten._unsafe_view.default,
        _aten.detach.default,
        _aten.alias.default,
        _aten.slice.Tensor,
        _aten.select.int,
        _aten.t.default,
        _aten.transpose.int,
        _aten.permute.default,
        _aten.expand.default,
        _aten.unsqueeze.default,
        _aten.squeeze.dim,
        _aten.as_strided.default,
        _aten.split.Tensor,
    )
)
_TAGS_UNKNOWN = (
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
)


_GROUPED = torch.ops.aten._grouped_mm.default
_COPY = torch.ops.aten._to_copy.default
_UNKNOWN: Any = object()


class _UnknownError(Exception):
    """The arguments hold something that a key cannot stand for."""


@dataclass(frozen=True, slots=True)
class _New:
    """A result in memory of its own."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Same:
    """A result that is one of the tensors among the arguments, by its place among them."""

    place: int


class FakeOperations:
    """Runs operations on fake tensors; call `run` from a dispatch mode above the fake one."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        mode.cache_enabled = False
        self._known: dict[tuple[Any, ...], tuple[type, tuple[_New | _Same | None, ...]] | None] = {}
        self._states: dict[torch.device, dict[str, Any]] = {}

    def run(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation, as `FakeTensorMode` gives it."""
        if operation is _DEVICE:
            return args[0].device
        if id(operation) in _VIEWS and isinstance(args[0], FakeTensor) and args[0].constant is None:
            return self._view(operation, args, kwargs)
        if operation.namespace == "c10d":
            return self._collective(operation, args, kwargs)
        if operation is _COPY and isinstance(args[0], FakeTensor) and args[0].constant is not None:
            # a constant is copied by its value as well, for which the simulated device has no kernel
            known = _New(args[0].dtype, args[0].shape, args[0].stride(), args[0].fake_device)
            return operation(self._make(known, []), **kwargs)
        if operation is _GROUPED:
            return args[0].new_empty(_grouped_shape(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("offs")))
        tensors: list[torch.Tensor] = []
        try:
            key = _key_of(operation, args, kwargs, tensors)
            known = self._known.get(key, _UNKNOWN)
        except (_UnknownError, TypeError):  # TypeError: an argument that has no hash
            return operation(*args, **kwargs)
        if known is _UNKNOWN:
            return self._learn(key, tensors, operation, args, kwargs)
        if known is None:
            return operation(*args, **kwargs)
        kind, results = known
        made = [self._make(result, tensors) for result in results]
        return kind(made) if kind is not torch.Tensor else made[0]

    def _view(self, operation: Any, args: Any, kwargs: Any) -> Any:
        out = self._kernel(operation, args, kwargs)
        device = args[0].fake_device
        if isinstance(out, torch.Tensor):
            return self._wrap(out, device)
        return [self._wrap(part, device) for part in out]

    def _collective(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Returns its arguments and a handle; the fake process group does nothing."""
        out = self._kernel(operation, args, kwargs)
        known = all(isinstance(tensor, FakeTensor) for tensor in tree_iter(out) if isinstance(tensor, torch.Tensor))
        return out if known else operation(*args, **kwargs)

    def _kernel(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Run the C++ kernel for `meta`, which fake tensors are inside; as `in_kernel_invocation_manager` does."""
        with torch._C._DisableTorchDispatch(), torch._C._PreserveDispatchKeyGuard():
            torch._C._set_meta_in_tls_dispatch_include(True)
            self._mode.in_kernel_invocation = True
            try:
                return operation(*args, **kwargs)
            finally:
                self._mode.in_kernel_invocation = False

    def _wrap(self, inner: torch.Tensor, device: torch.device) -> FakeTensor:
        """`FakeTensor(mode, inner, device)`, whose constructor is slow."""
        state = self._states.get(device)
        if state is None:
            made = FakeTensor(self._mode, inner, device)
            self._states[device] = dict(vars(made))
            return made
        made = torch.Tensor._make_subclass(
            FakeTensor, inner, inner.requires_grad, dispatch_device=True, device_for_backend_keys=device
        )
        torch._C._set_throw_on_mutable_data_ptr(made)
        vars(made).update(state)
        return made

    def _make(self, result: _New | _Same | None, tensors: list[torch.Tensor]) -> torch.Tensor | None:
        if isinstance(result, _New):
            with torch._C._DisableTorchDispatch():
                inner = torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device="meta")
            return self._wrap(inner, result.device)
        return None if result is None else tensors[result.place]

    def _learn(self, key: tuple[Any, ...], tensors: list[torch.Tensor], operation: Any, args: Any, kwargs: Any) -> Any:
        out = operation(*args, **kwargs)
        self._known[key] = None
        if operation.is_view or not is_builtin(operation) or any(tag in operation.tags for tag in _TAGS_UNKNOWN):
            return out
        parts = out if isinstance(out, (tuple, list)) else (out,)
        owned = {tensor.untyped_storage()._cdata for tensor in tensors}
        results = []
        for part in parts:
            result = self._remember(part, tensors, owned)
            if result is _UNKNOWN:
                return out
            results.append(result)
        self._known[key] = (type(out) if isinstance(out, (tuple, list)) else torch.Tensor, tuple(results))
        return out

    def _remember(self, part: Any, tensors: list[torch.Tensor], owned: set[int]) -> Any:
        if part is None:
            return None
        for place, tensor in enumerate(tensors):
            if tensor is part:
                return _Same(place)
        if not isinstance(part, FakeTensor) or part.constant is not None or part.layout is not torch.strided:
            return _UNKNOWN
        if part.untyped_storage()._cdata in owned or part.is_conj() or part.is_neg():
            return _UNKNOWN
        result = _New(part.dtype, part.shape, part.stride(), part.fake_device)
        twin = self._make(result, tensors)
        assert twin is not None
        alike = (
            part.storage_offset() == 0
            and twin.untyped_storage().nbytes() == part.untyped_storage().nbytes()
            and twin.requires_grad == part.requires_grad
            and torch._C._dispatch_key_set(twin) == torch._C._dispatch_key_set(part)
        )
        return result if alike else _UNKNOWN


def _grouped_shape(left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor | None) -> tuple[int, ...]:
    """Shape of a grouped product, of which PyTorch knows the kernel but, in fp32, not the shape."""
    if left.ndim == right.ndim == 2:
        assert offsets is not None
        return (offsets.shape[0], left.shape[0], right.shape[1])
    if left.ndim == 3 and right.ndim == 3:
        return (left.shape[0], left.shape[1], right.shape[2])
    return (left.shape[-2], right.shape[-1])


def _key_of(operation: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> tuple[Any, ...]:
    """What a result depends on, and the tensors among the arguments.

    Raises:
        _UnknownError: An argument is a tensor that is not fake, or is no ordinary one.
    """
    parts: list[Any] = [operation._op, torch.get_default_dtype()]
    _add(parts, args, tensors)
    for name, value in kwargs.items():
        parts.append(name)
        _add(parts, (value,), tensors)
    return tuple(parts)


def _add(parts: list[Any], values: Any, tensors: list[torch.Tensor]) -> None:
    for value in values:
        kind = type(value)
        if isinstance(value, torch.Tensor):
            if not isinstance(value, FakeTensor) or value.constant is not None or value.layout is not torch.strided:
                raise _UnknownError
            if value.is_conj() or value.is_neg():
                raise _UnknownError
            tensors.append(value)
            parts += (value.dtype, value.shape, value.stride(), value.fake_device, value.requires_grad)
        elif kind is list or kind is tuple:
            parts.append(len(value))
            _add(parts, value, tensors)
        elif kind is int or kind is float or kind is bool:
            parts += (kind, value)  # 1, 1.0 and True are one key otherwise
        else:
            parts.append(value)

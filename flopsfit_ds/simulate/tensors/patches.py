"""Everything that is changed in PyTorch and DeepSpeed so that the engine runs on fake tensors, each with its reason.

Only ever applied in a process of its own, made for a simulation: nothing here may reach one that trains.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, utils
from torch._subclasses.fake_tensor import FakeTensor

from flopsfit_ds.simulate.tensors.device import DEVICE_TYPE


def apply_patches() -> None:
    """Change PyTorch and DeepSpeed for the rest of this process; `self_test` sees whether it knows them."""
    _let_modules_move_fake_parameters()
    _give_fake_tensors_an_address()
    _make_tensors_from_values_fake()
    _skip_checks_across_ranks()
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign]  # no streams


def _let_modules_move_fake_parameters() -> None:
    """`Module._apply` sets `param.data`, which a fake tensor refuses when the device changes: make a new one then.

    Where only the type changes the parameter stays the same object, for an optimiser may hold it already.
    """

    def apply(self: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
        for module in self.children():
            module._apply(function)
        for name, parameter in self._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    moved = function(parameter)
                if moved is not parameter and moved.device == parameter.device:
                    parameter.data = moved
                elif moved is not parameter:
                    self._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = function(buffer)
        return self

    torch.nn.Module._apply = apply  # type: ignore[method-assign]


def _give_fake_tensors_an_address() -> None:
    """DeepSpeed asks tensors for their address, to see whether they alias and are aligned; a fake one has none."""
    address = torch.Tensor.data_ptr

    def data_ptr(self: torch.Tensor) -> int:
        return 0 if isinstance(self, FakeTensor) else address(self)

    torch.Tensor.data_ptr = data_ptr  # type: ignore[method-assign]


def _make_tensors_from_values_fake() -> None:
    """`torch.tensor(values, device=simulated)` would copy to a device that has no memory."""
    make = torch.tensor

    def tensor(data: Any, *args: Any, dtype: torch.dtype | None = None, device: Any = None, **kwargs: Any) -> Any:
        if device is None or torch.device(device).type != DEVICE_TYPE:
            return make(data, *args, dtype=dtype, device=device, **kwargs)
        sample = make(data, dtype=dtype, device="meta")
        return torch.zeros(sample.shape, dtype=sample.dtype, device=device)

    torch.tensor = tensor
    # `zero.Init` puts back what it remembers as the original
    partition_parameters._orig_torch_tensor = tensor


def _skip_checks_across_ranks() -> None:
    """ZeRO-3 compares integers over ranks by reading what a collective returned; there are no other ranks."""
    for module in (utils, partition_parameters, partitioned_param_coordinator):
        if hasattr(module, "assert_ints_same_as_other_ranks"):
            module.__dict__["assert_ints_same_as_other_ranks"] = lambda ints: None

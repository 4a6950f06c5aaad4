# pyright: reportIncompatibleMethodOverride=false
"""A device that only exists as fake tensors, and behaves towards DeepSpeed as a GPU does.

Fake tensors on `cuda` end the process in a CPU-only PyTorch, so the GPU is played by PyTorch's slot for out-of-tree
devices: with it, bytes of the device and of the host are told apart without any GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from torch.utils import backend_registration

DEVICE_TYPE = "simulated"


class _Module(backend_registration._DummyBackendModule):
    """What `torch.simulated` is, as PyTorch asks of a backend."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def register_device() -> None:
    """Make `torch.device("simulated")` known; once a process."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE_TYPE, backend_module=_Module())


class _Moment:
    """A CUDA event or stream, for work that takes no time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("query", "is_completed"):
            return lambda *args: True
        if name == "record_event":
            return lambda *args: _Moment()
        if name == "elapsed_time":
            return lambda *args: 0.0
        return lambda *args: None


class SimulatedAccelerator(CPU_Accelerator):
    """DeepSpeed's view of the simulated GPU: streams, pinned memory, a caching allocator; collectives do nothing."""

    def __init__(self, memory_bytes: int, live_bytes: Callable[[], int]) -> None:
        super().__init__()
        self._live_bytes = live_bytes
        self._name = DEVICE_TYPE
        self._memory_bytes = memory_bytes
        self._communication_backend_name = "fake"

    def is_synchronized_device(self) -> bool:  # noqa: D102
        return False

    def use_host_timers(self) -> bool:  # noqa: D102
        return True

    def resolves_data_dependency(self) -> bool:  # noqa: D102
        return False

    def handles_memory_backpressure(self) -> bool:  # noqa: D102
        return False

    def device_name(self, device_index: int | None = None) -> str:  # noqa: D102
        return DEVICE_TYPE if device_index is None else f"{DEVICE_TYPE}:{device_index}"

    def current_device_name(self) -> str:  # noqa: D102
        return f"{DEVICE_TYPE}:0"

    def device(self, device_index: int | None = None) -> Any:  # noqa: D102
        return contextlib.nullcontext()

    def set_device(self, device_index: int) -> None:  # noqa: D102
        pass

    def current_device(self) -> int:  # noqa: D102
        return 0

    def device_count(self) -> int:  # noqa: D102
        return 1

    def is_available(self) -> bool:  # noqa: D102
        return True

    def synchronize(self, device_index: int | None = None) -> None:  # noqa: D102
        pass

    def Stream(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102, N802
        return _Moment()

    def stream(self, stream: Any) -> Any:  # noqa: D102
        return contextlib.nullcontext()

    def current_stream(self, device_index: int | None = None) -> Any:  # noqa: D102
        return _Moment()

    def default_stream(self, device_index: int | None = None) -> Any:  # noqa: D102
        return _Moment()

    @property
    def Event(self) -> Any:  # noqa: D102, N802
        return _Moment

    def on_accelerator(self, tensor: torch.Tensor) -> bool:  # noqa: D102
        return tensor.device.type == DEVICE_TYPE

    def pin_memory(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: D102
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:  # noqa: D102
        return True

    def is_bf16_supported(self) -> bool:  # noqa: D102
        return True

    def is_fp16_supported(self) -> bool:  # noqa: D102
        return True

    def total_memory(self, device_index: int | None = None) -> int:  # noqa: D102
        return self._memory_bytes

    def available_memory(self, device_index: int | None = None) -> int:  # noqa: D102
        return max(0, self._memory_bytes - self._live_bytes())

    def memory_allocated(self, device_index: int | None = None) -> int:  # noqa: D102
        return 0

    def max_memory_allocated(self, device_index: int | None = None) -> int:  # noqa: D102
        return 0

    def memory_stats(self, device_index: int | None = None) -> dict[str, int]:  # noqa: D102
        return {}

    def empty_cache(self) -> None:  # noqa: D102
        pass

    def _filled(self, dtype: torch.dtype) -> Any:
        return lambda values=(): torch.tensor(values, dtype=dtype, device=DEVICE_TYPE)

    @property
    def FloatTensor(self) -> Any:  # noqa: D102, N802
        return self._filled(torch.float32)

    @property
    def ByteTensor(self) -> Any:  # noqa: D102, N802
        return self._filled(torch.uint8)

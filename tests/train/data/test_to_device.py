"""What a loop hands to a device: by pinned memory to a GPU, as it is elsewhere. No GPU is needed to see that."""

from __future__ import annotations

import pytest
import torch

from flopsfit_ds.train.data.outputs import to_device


@pytest.fixture
def copies(monkeypatch):
    """What would be copied to a GPU: shape, whether through pinned memory, and the arguments of the copy."""
    found: list[tuple[torch.Size, bool, tuple, dict]] = []
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    def copy(tensor: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        found.append((tensor.shape, any(tensor is each for each in pinned), args, kwargs))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    return found


def test_a_batch_goes_to_a_gpu_by_pinned_memory_and_nobody_waits(copies):
    device = torch.device("cuda", 0)
    whole, window = torch.arange(6.0).view(2, 3), torch.arange(8).view(2, 4)[:, :-1]
    batch = {"images": whole, "rest": (window, "a text")}
    moved = to_device(batch, device)
    assert torch.equal(moved["images"], whole)
    assert moved["rest"][1] == "a text"
    assert [(pinned, args, kwargs) for _, pinned, args, kwargs in copies] == [
        (True, (device,), {"non_blocking": True}),
        (False, (device,), {"non_blocking": True}),
    ]


def test_on_a_cpu_nothing_is_copied(copies):
    batch = (torch.ones(2), torch.ones(3))
    assert to_device(batch, torch.device("cpu")) is batch
    assert not copies

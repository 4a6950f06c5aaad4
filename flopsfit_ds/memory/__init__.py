"""Memory of a training run by closed forms: instant, and without torch.

The forms propose; `flopsfit_ds.simulate`, which runs the real engine on fake tensors, decides.
"""

from flopsfit_ds.memory.buckets import ZeroBuckets, training_buckets
from flopsfit_ds.memory.closed_form import ERROR_OF_DECODERS, estimate_memory
from flopsfit_ds.memory.margin import allocator_margin, delayed_free_bytes
from flopsfit_ds.memory.profile import ModelProfile, profile_decoder
from flopsfit_ds.memory.types import MarginLine, MemoryComponents, MemoryEstimate, Phase, Strategy

__all__ = [
    "ERROR_OF_DECODERS",
    "MarginLine",
    "MemoryComponents",
    "MemoryEstimate",
    "ModelProfile",
    "Phase",
    "Strategy",
    "ZeroBuckets",
    "allocator_margin",
    "delayed_free_bytes",
    "estimate_memory",
    "profile_decoder",
    "training_buckets",
]

"""What of DeepSpeed's configuration decides how much its buffers hold."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from flopsfit_ds.base.presets import Offload, zero_section


@dataclass(frozen=True)
class ZeroBuckets:
    """Settings of DeepSpeed's `zero_optimization` section that cost memory; sizes in elements.

    Attributes:
        reduce_bucket_size: Gradients collected before they are reduced.
        allgather_bucket_size: Parameters gathered at once after a step of ZeRO-1 and 2.
        prefetch_bucket_size: Parameters gathered ahead at ZeRO-3.
        param_persistence_threshold: Smaller tensors stay whole at ZeRO-3.
        max_live_parameters: At ZeRO-3 no more is gathered ahead beyond so many.
        max_reuse_distance: At ZeRO-3, parameters used again within so many stay gathered.
        overlap_comm: Gradients are reduced beside the backward pass, out of a second bucket.
    """

    reduce_bucket_size: int
    allgather_bucket_size: int
    prefetch_bucket_size: int
    param_persistence_threshold: int
    max_live_parameters: int
    max_reuse_distance: int
    overlap_comm: bool

    @staticmethod
    def from_section(section: dict[str, Any]) -> ZeroBuckets:
        """Read a `zero_optimization` section, with DeepSpeed 0.19's defaults for what it leaves out."""
        return ZeroBuckets(
            reduce_bucket_size=int(section.get("reduce_bucket_size", 5e8)),
            allgather_bucket_size=int(section.get("allgather_bucket_size", 5e8)),
            prefetch_bucket_size=int(section.get("stage3_prefetch_bucket_size", 5e7)),
            param_persistence_threshold=int(section.get("stage3_param_persistence_threshold", 1e5)),
            max_live_parameters=int(section.get("stage3_max_live_parameters", 1e9)),
            max_reuse_distance=int(section.get("stage3_max_reuse_distance", 1e9)),
            overlap_comm=bool(section.get("overlap_comm", section.get("stage") == 3)),
        )


@functools.lru_cache(maxsize=4096)
def training_buckets(
    zero_stage: int, offload: Offload, num_params: int, num_params_trainable: int, deepspeed: str = ""
) -> ZeroBuckets:
    """The settings that runs are trained with; `deepspeed` holds keys of the user's own, as JSON."""
    return ZeroBuckets.from_section(zero_section(zero_stage, offload, num_params, num_params_trainable, deepspeed))

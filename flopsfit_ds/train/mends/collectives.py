"""Ranks on a CPU talk through gloo alone.

DeepSpeed has a collective in shared memory too, which it compiles at first use, for up to two minutes. Whether it could
is found by asking the C++ compiler about all of DeepSpeed's operators, in each rank: what nobody asks costs nothing.
"""

from __future__ import annotations

import deepspeed.ops


def without_shared_memory() -> None:
    """Let DeepSpeed know that the collective in shared memory cannot be had, and of other operators as it did."""
    deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False

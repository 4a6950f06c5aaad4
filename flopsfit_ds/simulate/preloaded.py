"""Loads what a simulation needs: imported in a process that forks, so that its children need not.

PyTorch and DeepSpeed import their compilers at first use, which takes seconds, and DeepSpeed asks the C++ compiler
which of its operators could be built.
"""

import deepspeed.ops
import deepspeed.runtime.zero.muon.original_muon
import torch._dynamo  # noqa: F401

import flopsfit_ds.simulate.rank
import flopsfit_ds.train.model
import flopsfit_ds.train.session  # noqa: F401

OPERATORS = deepspeed.ops.__compatible_ops__
"""Which of DeepSpeed's operators this machine can build; the first access asks."""

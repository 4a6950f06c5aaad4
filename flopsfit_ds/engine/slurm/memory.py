"""Host memory that a resume takes: DeepSpeed 0.19.8 reads a checkpoint into host memory, whole and unmapped.

`TorchCheckpointEngine.load` is `torch.load(..., weights_only=False)` without `mmap`
(runtime/checkpoint_engine/torch_checkpoint_engine.py:37), onto the CPU, whatever the device. Each rank reads two files:

- the module's states (runtime/state_dict_factory.py:97, through runtime/engine.py:4591): 4 bytes a parameter, the
  weights being fp32 (2 under `bf16-pure`, where 4 is on the safe side); at stage 0 the two moments too, 8 bytes, for
  the optimiser is in the same file (engine.py:4693); at stage 3 hardly anything, as its parameters are
  empty outside of the optimiser;
- at stages 1 to 3 its own share of the optimiser's states (engine.py:4817): fp32 weights and two moments, 12 bytes.

The first is freed before the second is read: `_load_checkpoint` returns neither the module nor the optimiser
(engine.py:4726), and `_load_zero_checkpoint` is called after it (engine.py:4460). Saving takes less: `torch.save` moves
one storage at a time to the host.
"""

from __future__ import annotations

import math

from flopsfit_ds.memory import Strategy

_WEIGHT_BYTES = 4  # fp32
_MOMENT_BYTES = 8  # AdamW's two, in fp32


def load_bytes(strategy: Strategy, num_params: int, num_params_trainable: int) -> int:
    """Host memory that one rank takes for a moment when it loads a checkpoint of its own layout, in bytes.

    Measured as a multiple of the parameters, on 25 M of them: 12.0 bytes at stage 0, 12.0 and 6.0 at stages 1, 2 and 3
    on 1 and 2 ranks.

    Args:
        strategy: The layout.
        num_params: All of the model's parameters.
        num_params_trainable: Of these, with states of the optimiser.
    """
    module, share = _files(strategy, num_params, num_params_trainable)
    return max(module, share)


def convert_bytes(written_by: Strategy, num_params: int, num_params_trainable: int) -> int:
    """Host memory that rank 0 takes, alone, when it converts the checkpoint of another layout, in bytes.

    It keeps the module's states while DeepSpeed reads the module again and then, one after another, the shares of all
    ranks (checkpoint/deepspeed_checkpoint.py:136, ds_to_universal.py:135, 186, 1215), and what glibc's allocator frees
    between two reads need not be the system's again. What is loaded afterwards is read a parameter at a time. Measured
    on 25 M parameters, in bytes a parameter: 20.2 from 1 rank and 14.2 from 2 at stage 2; 13.5 and 7.0 at stage 3,
    whose share counts a third more here for that.

    Args:
        written_by: The layout that wrote it.
        num_params: All of the model's parameters.
        num_params_trainable: Of these, with states of the optimiser.
    """
    module, share = _files(written_by, num_params, num_params_trainable)
    if written_by.zero_stage == 0:
        return module
    return 2 * module + (share * 4 // 3 if written_by.zero_stage == 3 else share)


def _files(strategy: Strategy, num_params: int, num_params_trainable: int) -> tuple[int, int]:
    """Bytes of the module's states and of one rank's share of the optimiser's, as they are in a checkpoint."""
    if strategy.zero_stage == 0:
        return _WEIGHT_BYTES * num_params + _MOMENT_BYTES * num_params_trainable, 0
    share = (_WEIGHT_BYTES + _MOMENT_BYTES) * math.ceil(num_params_trainable / strategy.num_gpus)
    if strategy.zero_stage == 3:
        frozen = num_params - num_params_trainable
        return _WEIGHT_BYTES * math.ceil(frozen / strategy.num_gpus), share
    return _WEIGHT_BYTES * num_params, share

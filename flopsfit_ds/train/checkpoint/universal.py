"""A checkpoint for another number of ranks or ZeRO stage, by DeepSpeed's universal checkpoint format.

`ds_to_universal` writes a folder a parameter: its fp32 value, Adam's two moments, and the step. It serves a change of
ranks within stages 1 and 2, and within stage 3; what it writes for one of the two lacks keys that the other's loader
reads, and stage 0 it does not know. `convert` fills in what is missing, so that one folder serves all stages.

Traps of DeepSpeed 0.19.8 that are mended after its loaders have run: at stage 3 all parameters are given one and the
same step tensor, which the optimiser then advances once for each of them; also at stage 3 every parameter group gets
the settings of the first, hence weight decay on norms; steps stay on the CPU; buffers of the module are not loaded.
Frozen parameters are not loaded either, and need not be: they are what the run's seed drew.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.checkpoint.constants import DS_VERSION, OPTIMIZER_STATE_DICT, PARAM, PARAM_GROUPS

from flopsfit_ds.train.checkpoint.files import TAG, Pulse, SavedState
from flopsfit_ds.train.checkpoint.tensors import tensors_only
from flopsfit_ds.train.session import Session

_STATES = ("fp32", "exp_avg", "exp_avg_sq")
_WHOLE_MODEL = "mp_rank_00_model_states.pt"
_SHARED_MODEL = "zero_pp_rank_0_mp_rank_00_model_states.pt"
_OPTIMIZER = "optimizer_state.pt"
_TRAINED = "flopsfit_trained_parameters"
_BUFFERS = "flopsfit_buffers"


def client_state(session: Session) -> dict[str, Any]:
    """What a change of layout needs beyond what DeepSpeed saves: buffers, and at stage 0 the optimiser's order."""
    engine = session.engine
    saved = engine.module.state_dict().keys()
    state: dict[str, Any] = {_BUFFERS: {name: b for name, b in engine.module.named_buffers() if name in saved}}
    if engine.zero_optimization_stage() == 0:
        groups = engine.optimizer.param_groups
        state[_TRAINED] = [engine.param_names[parameter] for group in groups for parameter in group["params"]]
    return state


def convert(saved: SavedState, target: Path, pulse: Pulse) -> None:
    """Write the universal form of a verified checkpoint into `target`, a folder beside it; one process, no pool.

    Args:
        saved: The checkpoint.
        target: The folder, which is not there yet.
        pulse: Told that the work goes on.

    Raises:
        OSError: It cannot be written.
        Exception: Whatever DeepSpeed raises about a checkpoint that it cannot convert.
    """
    zero = target / TAG / "zero"
    model = _load(saved.path / TAG / (_SHARED_MODEL if saved.zero_stage == 3 else _WHOLE_MODEL))
    if saved.zero_stage == 0:
        step, groups = _split_whole(model, zero, pulse)
    else:
        _run_deepspeeds_conversion(saved.path, target, pulse)
        step, groups = _complete_shards(zero, saved.zero_stage, pulse)
    state = {"state": {0: {"step": step}}, PARAM_GROUPS: groups}
    torch.save(
        {PARAM_GROUPS: groups, OPTIMIZER_STATE_DICT: state, DS_VERSION: deepspeed.__version__}, zero / _OPTIMIZER
    )
    rest = {key: value for key, value in model.items() if key not in ("module", "optimizer")}
    for name in (_WHOLE_MODEL, _SHARED_MODEL):
        torch.save(rest, target / TAG / name)


class _Progress(io.StringIO):
    """Where DeepSpeed shows its progress bars: each sign of life is a pulse, and nothing is kept."""

    def __init__(self, pulse: Pulse) -> None:
        super().__init__()
        self._pulse = pulse

    def write(self, text: str) -> int:
        self._pulse("convert")
        return len(text)


def _run_deepspeeds_conversion(source: Path, target: Path, pulse: Pulse) -> None:
    arguments = argparse.Namespace(
        input_folder=str(Path(source.name, TAG)), output_folder=str(Path(target.name, TAG)), strict=True,
        num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False, inject_missing_state=True,
    )  # fmt: skip
    progress = _Progress(pulse)
    with (
        inside(source.parent),
        tensors_only(),
        contextlib.redirect_stdout(progress),
        contextlib.redirect_stderr(progress),
    ):
        ds_to_universal.main(arguments)


def _split_whole(model: dict[str, Any], zero: Path, pulse: Pulse) -> tuple[torch.Tensor, list[Any]]:
    """Stage 0: a folder a trained parameter, out of the whole states of module and optimiser."""
    optimizer = model["optimizer"]
    steps = [state["step"] for state in optimizer["state"].values()]
    for index, name in enumerate(model[_TRAINED]):
        value, moments = model["module"][name], optimizer["state"].get(index)
        if moments is None:  # it never had a gradient
            moments = {"exp_avg": torch.zeros_like(value), "exp_avg_sq": torch.zeros_like(value), "step": max(steps)}
        _write_states(zero / name, {"fp32": value, **moments}, moments["step"])
        pulse("convert")
    return max(steps), optimizer[PARAM_GROUPS]


def _complete_shards(zero: Path, zero_stage: int, pulse: Pulse) -> tuple[torch.Tensor, list[Any]]:
    """Stages 1 to 3: the step and the parameter groups, and stage 3's bare tensors in the form that 1 and 2 read."""
    optimizer = _load(zero / _OPTIMIZER)
    if zero_stage < 3:
        return _load(next(zero.glob("*/step.pt"))), optimizer[PARAM_GROUPS]
    step = optimizer[OPTIMIZER_STATE_DICT]["state"][0]["step"]
    for folder in (path for path in zero.iterdir() if path.is_dir()):
        _write_states(folder, {key: _load(folder / f"{key}.pt") for key in _STATES}, step)
        pulse("convert")
    return step, optimizer[PARAM_GROUPS]


def _write_states(folder: Path, states: dict[str, torch.Tensor], step: torch.Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for key in _STATES:
        torch.save({PARAM: states[key].clone()}, folder / f"{key}.pt")
    torch.save(step, folder / "step.pt")


def _load(path: Path) -> Any:
    with tensors_only():
        return torch.load(path, map_location="cpu", weights_only=True)


def has_share_of_every_group(session: Session) -> bool:
    """Whether this rank holds a part of each group of parameters, as DeepSpeed's loader of stages 1 and 2 demands."""
    if session.engine.zero_optimization_stage() not in (1, 2):
        return True
    groups = session.engine.optimizer.bit16_groups
    return all(any(parameter._hp_mapping is not None for parameter in group) for group in groups)


def load_universal(session: Session, folder: Path) -> None:
    """Load a converted checkpoint into an engine that was opened for it: weights, moments, steps, buffers."""
    engine = session.engine
    if engine.zero_optimization_stage() == 0:
        client = _load(folder / TAG / _WHOLE_MODEL)
        _load_whole(engine, folder / TAG / "zero")
    else:
        settings = [{key: group[key] for key in group if key != "params"} for group in engine.optimizer.param_groups]
        with inside(folder.parent), tensors_only():
            _, client = engine.load_checkpoint(folder.name, tag=TAG)
        for group, values in zip(engine.optimizer.param_groups, settings, strict=True):
            group.update(values)
        for parameter, state in engine.optimizer.optimizer.state.items():
            state["step"] = state["step"].clone().to(parameter.device)
    buffers = dict(engine.module.named_buffers())
    for name, value in client[_BUFFERS].items():
        buffers[name].copy_(value)


@torch.no_grad()
def _load_whole(engine: Any, zero: Path) -> None:
    for group in engine.optimizer.param_groups:
        for parameter in group["params"]:
            folder = zero / engine.param_names[parameter]
            value, *moments = (_load(folder / f"{key}.pt")[PARAM].view_as(parameter) for key in _STATES)
            parameter.copy_(value)
            first, second = (moment.to(parameter.device) for moment in moments)
            step = _load(folder / "step.pt").to(parameter.device)
            engine.optimizer.state[parameter] = {"step": step, "exp_avg": first, "exp_avg_sq": second}


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work inside a folder for a moment: DeepSpeed takes paths for patterns, and relative ones hold nothing special."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)

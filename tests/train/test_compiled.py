"""Compiled blocks train as eager ones do, at every stage, and eager ones take over where the compiler fails."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from torch import nn
from transformers import AutoConfig

from flopsfit_ds.train.model.compiled import compile_blocks
from flopsfit_ds.train.model.hf import build_from_config
from helpers.study import hf_training
from helpers.sweeps import EVERY_OPTION
from helpers.train.ranks import Layout, RankServer, bench_of

EAGER = Layout(0, 1, 2)
TEN_STEPS = {"design__points": [{"num_params": 6e3, "num_tokens": 1280}]}


def trained_by(server, folder, layout, **changes):
    folder.mkdir()
    attempt = bench_of(server, folder, layout, **changes).finish()
    return attempt.losses, attempt.outcome


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of PyTorch needs one of C++")
def test_a_decoder_with_all_options_compiles(tmp_path):
    assert_compiled_curves_agree(tmp_path, [Layout(3, 2, 2)], **EVERY_OPTION, **TEN_STEPS)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of PyTorch needs one of C++")
def test_blocks_of_a_llama_of_transformers_compile(tmp_path):
    server = RankServer({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "code"), "TORCHINDUCTOR_COMPILE_THREADS": "1"})
    try:
        expected = hf_training.trained(server, tmp_path / "eager", "llama", EAGER)
        layouts = [Layout(0, 1, 2, compiled=True), Layout(3, 2, 2, activation_checkpointing=True, compiled=True)]
        for layout in layouts:
            attempt = hf_training.trained(server, tmp_path / str(layout), "llama", layout)
            assert attempt.outcome["observed"]["compiled"] is True, attempt.outcome["observed"]["missing"]
            assert "recompile_limit" not in attempt.logs()
            difference = np.abs(np.asarray(attempt.losses) - np.asarray(expected.losses)).max()
            print(f"{layout}: {difference:.2e}")
            assert 0 < difference <= 1e-4, layout
    finally:
        server.close()


def test_a_model_of_transformers_whose_blocks_share_no_graph_says_why():
    uneven = nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.ReLU()]))
    assert "Sequential has no list of layers of one class" in (compile_blocks(uneven).failure or "")
    config = AutoConfig.for_model(
        "mixtral", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, vocab_size=32, output_router_logits=True,
    )  # fmt: skip
    mixture = build_from_config(config)
    assert "a router's outputs" in (compile_blocks(mixture).failure or "")
    assert not any("forward" in vars(module) for module in mixture.modules())


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of PyTorch needs one of C++")
def test_compiled_curves_are_the_eager_ones_at_every_stage(tmp_path):
    layouts = [EAGER, *(Layout(stage, 2, 2) for stage in (3, 0, 1, 2))]
    layouts += [Layout(stage, 2, 2, activation_checkpointing=True) for stage in (2, 3)]
    assert_compiled_curves_agree(tmp_path, layouts)


def assert_compiled_curves_agree(tmp_path, layouts, **changes):
    server = RankServer({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "code"), "TORCHINDUCTOR_COMPILE_THREADS": "1"})
    try:
        expected, outcome = trained_by(server, tmp_path / "eager", EAGER, **changes)
        assert outcome["observed"]["compiled"] is False
        for layout in layouts:
            layout = dataclasses.replace(layout, compiled=True)
            losses, outcome = trained_by(server, tmp_path / str(layout), layout, **changes)
            assert outcome["observed"]["compiled"] is True, outcome["observed"]["missing"]
            assert "recompile_limit" not in "".join(log.read_text() for log in (tmp_path / str(layout)).rglob("log.*"))
            difference = np.abs(np.asarray(losses) - np.asarray(expected)).max()
            print(f"{layout}: {difference:.2e}")
            assert 0 < difference <= 1e-4, layout  # it is other arithmetic, and no more than that
    finally:
        server.close()
    assert any((tmp_path / "code").rglob("*.py"))


def test_what_does_not_compile_is_trained_as_it_is_and_says_why(tmp_path, server):
    broken = RankServer({"CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "code")})
    try:
        losses, outcome = trained_by(broken, tmp_path / "broken", Layout(0, 1, 2, compiled=True), **TEN_STEPS)
    finally:
        broken.close()
    expected, _ = trained_by(server, tmp_path / "eager", EAGER, **TEN_STEPS)
    assert losses == expected
    observed = outcome["observed"]
    assert observed["compiled"] is None
    assert "false" in observed["missing"]["compiled"]


def test_an_offloaded_run_is_not_compiled_and_says_why(tmp_path, server):
    layout = Layout(3, 1, 2, "optimizer", compiled=True)
    losses, outcome = trained_by(server, tmp_path / "offloaded", layout, **TEN_STEPS)
    expected, plain = trained_by(server, tmp_path / "plain", dataclasses.replace(layout, compiled=False), **TEN_STEPS)
    assert losses == expected
    assert outcome["observed"]["compiled"] is None
    assert "offloaded" in outcome["observed"]["missing"]["compiled"]
    assert plain["observed"]["compiled"] is False
